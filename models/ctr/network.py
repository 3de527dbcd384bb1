"""The network of the click model, over ids, statistics and, if asked, content.

The networks "id", "din" and "cube" grow by one thing each: attention over the behaviours' ids, then the content streams
of CUBE. Everything else about them is equal, so that what they differ by is what that thing is worth.

Source:  MOON (arXiv 2511.11305), figure 5; DIN (arXiv 1706.06978) for the attention over ids.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.ctr import cube
from models.ctr.config import STREAMS, CtrConfig
from models.ctr.features import CONTEXTS, PADDING, SAME_PRODUCT, Batch, EncodedRows
from moonlake.arrays import Float64s, Int64s
from moonlake.embeddings.snapshots import Snapshot

WEIGHTS = "weights.safetensors"
ATTENTION = 32
"""Units that score a behaviour."""


class CtrNetwork(nn.Module):
    """Logits of clicks from batches of impressions; the streams are those of MOON's figure 5, and past searches.

    Args:
        sizes: rows of each id embedding.   dense_width: F of a batch.
        dimension: length D of a vector, or None for a network without content.
    """

    def __init__(
        self, config: CtrConfig, sizes: tuple[int, ...], dense_width: int, dimension: int | None = None
    ) -> None:
        super().__init__()
        wide = config.id_dimension
        self.length, self.nearest = config.behavior_length, config.nearest
        self.product = config.id_features.index("product_id")
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, wide, padding_idx=PADDING, sparse=name in config.hashed)
            for name, size in zip(config.id_features, sizes, strict=True)
        )
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.05)  # type: ignore[arg-type]
        width = len(sizes) * wide + dense_width
        self.attention = self.content = None
        if config.model != "id" and "id_interest" not in config.left_out:
            self.attention = IdInterest(wide, sees_similarities=config.attention == "ids_and_similarities")
            width += wide + 1
        if dimension is not None:
            looked_at = min(config.nearest or config.behavior_length, config.behavior_length)
            self.content = ContentStreams(dimension, config.content_dimension, looked_at, wide, config.left_out)
            width += self.content.width
        layers: list[nn.Module] = []
        for size in config.hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = size
        self.predictor = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32 [B]."""
        of_id = [embed(ids) for embed, ids in zip(self.embeddings, batch.ids.unbind(1), strict=True)]  # I x [B, E]
        behaviors = self.embeddings[self.product](batch.behavior_ids)  # [B, K, E]
        streams = [*of_id, batch.dense]  # [B, I*E + F]
        if self.attention is not None:
            streams.append(self.attention(of_id[self.product], behaviors, batch))  # [B, E + 1]
        if self.content is not None and batch.content is not None:
            streams.append(self.content(batch.content, behaviors))  # [B, W]
        logits: Tensor = self.predictor(torch.cat(streams, -1)).squeeze(-1)  # [B]
        return logits

    def probabilities(self, rows: EncodedRows, snapshot: Snapshot | None, chosen: Int64s | None = None) -> Float64s:
        """Click probabilities [n] of encoded rows, or of the `chosen` [n] among them, in eval mode from then on."""
        vectors = None if snapshot is None else snapshot.vectors
        self.eval()
        with torch.inference_mode():
            logits = [self(batch) for batch in rows.batches(self.length, vectors, chosen, self.nearest)]
            found: Float64s = torch.sigmoid(torch.cat([torch.empty(0), *logits]).double()).numpy()
        return found

    def write(self, folder: Path) -> None:
        """Write the weights into an artifact folder."""
        save_file(self.state_dict(), folder / WEIGHTS)

    @classmethod
    def open(
        cls, folder: Path, config: CtrConfig, sizes: tuple[int, ...], dense_width: int, dimension: int | None
    ) -> CtrNetwork:
        """The network that `write` wrote; the other arguments are those that it was made with."""
        network = cls(config, sizes, dense_width, dimension)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return network.eval()


class IdInterest(nn.Module):
    """ID-interest: what the behaviours' ids say about the target's id, by learned attention (DIN).

    Args: sees_similarities: whether the attention also knows how similar the contents of target and behaviour are.
    """

    def __init__(self, width: int, *, sees_similarities: bool) -> None:
        super().__init__()
        self.context = nn.Embedding(CONTEXTS, width)
        nn.init.normal_(self.context.weight, std=0.05)
        # One layer over [target, behaviour, their product]; for one target it is linear in the behaviour alone.
        self.of_target, self.of_behavior = nn.Linear(width, ATTENTION), nn.Linear(width, ATTENTION, bias=False)
        self.of_product = nn.Linear(width, ATTENTION, bias=False)
        self.of_similarity = nn.Linear(2, ATTENTION, bias=False) if sees_similarities else None
        self.score = nn.Linear(ATTENTION, 1)

    def forward(self, target: Tensor, behaviors: Tensor, batch: Batch) -> Tensor:
        """float32 [B, E + 1], the last of it how often the user acted on the target; zeros without behaviours.

        Args:    target: float32 [B, E].   behaviors: float32 [B, K, E].
        """
        known = batch.behavior_ids != PADDING  # [B, K]
        keys = behaviors + self.context(batch.behavior_contexts)  # [B, K, E]
        of_key = self.of_behavior.weight.T + target[:, :, None] * self.of_product.weight.T  # [B, E, A]
        hidden = torch.baddbmm(self.of_target(target)[:, None], keys, of_key)  # [B, K, A]
        if self.of_similarity is not None and batch.content is not None:
            seen = torch.stack([batch.content.cosines, batch.content.cosines_known.float()], -1)  # [B, K, 2]
            hidden = hidden + self.of_similarity(seen)  # [B, K, A]
        scores = self.score(hidden.relu()).squeeze(-1)  # [B, K]
        same = batch.behavior_contexts >= SAME_PRODUCT  # [B, K]
        times = same.sum(-1, keepdim=True).float().log1p()  # [B, 1]
        return torch.cat([cube.pool(cube.similarity_weights(scores, known, 1.0), keys), times], -1)  # [B, E + 1]


class ContentStreams(nn.Module):
    """The streams that read vectors, side by side, and which vectors are there.

    Args: length: K, behaviours that are looked at.   id_width: E.   left_out: names of STREAMS to do without.
    """

    def __init__(self, dimension: int, projected: int, length: int, id_width: int, left_out: tuple[str, ...]) -> None:
        super().__init__()
        summary = cube.HISTOGRAM_BINS + 2
        vectors = dict.fromkeys(("target", "query", "content_interest", "search_interest"), projected)
        widths = vectors | {
            "target_query": 1,
            "similarities": length,
            "similarity_histogram": summary,
            "search_histogram": summary,
            "fusion_interest": id_width,
        }
        self.names = [name for name in STREAMS if name in widths and name not in left_out]
        self.width = sum(widths[name] for name in self.names) + 4
        self.project = nn.ModuleDict(
            {name: nn.Linear(dimension, projected, bias=False) for name in self.names if name in vectors}
        )
        self.log_temperatures = nn.Parameter(torch.full((2,), -2.0))

    def forward(self, content: cube.Content, behaviors: Tensor) -> Tensor:
        """float32 [B, width].

        Args: behaviors: float32 [B, K, E], vectors of the behaviours' ids.
        """
        of_items, of_searches = self.log_temperatures.exp()
        items = content.cosines_known & ~content.searched  # [B, K]
        searches = content.cosines_known & content.searched  # [B, K]
        weights = cube.similarity_weights(content.cosines, items, of_items)  # [B, K]
        past = cube.similarity_weights(content.cosines, searches, of_searches)  # [B, K]
        found = {
            "target": content.target * content.target_known[:, None],  # [B, D]
            "query": content.query * content.query_known[:, None],  # [B, D]
            "content_interest": cube.pool(weights, content.behaviors),  # [B, D]
            "search_interest": cube.pool(past, content.behaviors),  # [B, D]
            "target_query": content.target_query[:, None],  # [B, 1]
            "similarities": content.cosines * items,  # [B, K]
            "similarity_histogram": _side_by_side(content.items),  # [B, bins + 2]
            "search_histogram": _side_by_side(content.searches),  # [B, bins + 2]
            "fusion_interest": cube.pool(weights, behaviors),  # [B, E]
        }
        known = content.target_known, content.pair_known, items.any(-1), searches.any(-1)  # 4 x [B]
        streams = [self.project[name](found[name]) if name in self.project else found[name] for name in self.names]
        return torch.cat([*streams, torch.stack(known, -1).float()], -1)


def _side_by_side(summary: cube.Summary) -> Tensor:
    """float32 [B, bins + 2]: histogram, largest and mean."""
    return torch.cat([summary.histogram, summary.largest[:, None], summary.mean[:, None]], -1)
