"""The network of the click model, over ids, statistics and, if asked, content.

The networks "id", "din" and "cube" grow by one thing each: attention over the behaviours' ids, then the content streams
of CUBE. Everything else about them is equal, so that what they differ by is what that thing is worth.

Source:  MOON (arXiv 2511.11305), figure 5; DIN (arXiv 1706.06978) for the attention over ids.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import cube
from models.ctr_config import CtrConfig
from models.ctr_features import CONTEXTS, PADDING, SAME_PRODUCT, Batch, EncodedRows
from moonlake.snapshots import Snapshot

WEIGHTS = "weights.safetensors"
ATTENTION = 32
"""Units that score a behaviour."""


class CtrNetwork(nn.Module):
    """Logits of clicks from batches of impressions; the streams are those of MOON's figure 5.

    Args:
        sizes: rows of each id embedding.   product: place of product_id among them.   dense_width: F of a batch.
        dimension: length D of a vector, or None for a network without content.
    """

    def __init__(
        self, config: CtrConfig, sizes: tuple[int, ...], dense_width: int, dimension: int | None = None
    ) -> None:
        super().__init__()
        wide = config.id_dimension
        self.length = config.behavior_length
        self.product = config.id_features.index("product_id")
        self.embeddings = nn.ModuleList(nn.Embedding(size, wide, padding_idx=PADDING) for size in sizes)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.05)  # type: ignore[arg-type]
        self.attention = None if config.model == "id" else IdInterest(wide)
        width = len(sizes) * wide + dense_width + (0 if self.attention is None else wide + 1)
        self.content = None
        if dimension is not None:
            self.content = ContentStreams(dimension, config.content_dimension, config.behavior_length)
            width += self.content.width + wide
        layers: list[nn.Module] = []
        for size in config.hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = size
        self.predictor = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32 [B]."""
        of_id = [embed(ids) for embed, ids in zip(self.embeddings, batch.ids.unbind(1), strict=True)]  # I x [B, E]
        behaviors = self.embeddings[self.product](batch.behavior_ids)  # [B, L, E]
        streams = [*of_id, batch.dense]  # [B, I*E + F]
        if self.attention is not None:
            streams.append(self.attention(of_id[self.product], behaviors, batch))  # [B, E + 1]
        if self.content is not None and batch.content is not None:
            weights, content = self.content(batch.content)  # [B, L], [B, W]
            streams += [content, cube.pool(weights, behaviors)]  # fusion-interest [B, E]
        logits: Tensor = self.predictor(torch.cat(streams, -1)).squeeze(-1)  # [B]
        return logits

    def probabilities(
        self, rows: EncodedRows, snapshot: Snapshot | None, chosen: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Click probabilities [n] of encoded rows, or of the `chosen` [n] among them, in eval mode from then on."""
        vectors = None if snapshot is None else snapshot.vectors
        self.eval()
        with torch.inference_mode():
            logits = [self(batch) for batch in rows.batches(self.length, vectors, chosen)]
            found: NDArray[np.float64] = torch.sigmoid(torch.cat([torch.empty(0), *logits]).double()).numpy()
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
    """ID-interest: what the behaviours' ids say about the target's id, by learned attention (DIN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = nn.Embedding(CONTEXTS, width)
        nn.init.normal_(self.context.weight, std=0.05)
        # Together one layer over [target, behaviour, their product]; apart, the target's share is computed once a row.
        self.of_target, self.of_behavior = nn.Linear(width, ATTENTION), nn.Linear(width, ATTENTION, bias=False)
        self.of_product = nn.Linear(width, ATTENTION, bias=False)
        self.score = nn.Linear(ATTENTION, 1)

    def forward(self, target: Tensor, behaviors: Tensor, batch: Batch) -> Tensor:
        """float32 [B, E + 1], the last of it how often the user acted on the target; zeros without behaviours.

        Args:    target: float32 [B, E].   behaviors: float32 [B, L, E].
        """
        known = batch.behavior_ids != PADDING  # [B, L]
        keys = behaviors + self.context(batch.behavior_contexts)  # [B, L, E]
        wanted = target[:, None]  # [B, 1, E]
        hidden = self.of_target(wanted) + self.of_behavior(keys) + self.of_product(wanted * behaviors)  # [B, L, A]
        scores = self.score(hidden.relu()).squeeze(-1)  # [B, L]
        same = batch.behavior_contexts >= SAME_PRODUCT  # [B, L]
        times = same.sum(-1, keepdim=True).float().log1p()  # [B, 1]
        return torch.cat([cube.pool(cube.similarity_weights(scores, known, 1.0), keys), times], -1)  # [B, E + 1]


class ContentStreams(nn.Module):
    """The streams that read vectors: similarities, content-interest, target and query."""

    def __init__(self, dimension: int, projected: int, length: int) -> None:
        super().__init__()
        self.target, self.query, self.interest = (nn.Linear(dimension, projected, bias=False) for _ in range(3))
        self.log_temperature = nn.Parameter(torch.tensor(-2.0))
        self.width = 3 * projected + length + cube.HISTOGRAM_BINS + 6

    def forward(self, content: cube.Content) -> tuple[Tensor, Tensor]:
        """Weights of the behaviours, float32 [B, L], and the streams side by side, float32 [B, width]."""
        found = cube.similarities(content)
        cosines, known = found.behaviors, found.behaviors_known  # [B, L], [B, L]
        weights = cube.similarity_weights(cosines, known, self.log_temperature.exp())  # [B, L]
        summary = [
            found.target_query, found.target_query_known, content.target_known, known.any(-1),
            cube.largest(cosines, known), cube.mean(cosines, known),
        ]  # fmt: skip
        streams = [
            cosines,  # the similarity vector [B, L]
            cube.histogram(cosines, known),  # [B, bins]
            torch.stack([one.float() for one in summary], -1),  # [B, 6]
            self.interest(cube.pool(weights, content.behaviors)),  # content-interest [B, P]
            self.target(content.target * content.target_known[:, None]),  # [B, P]
            self.query(content.query * content.query_known[:, None]),  # [B, P]
        ]
        return weights, torch.cat(streams, -1)
