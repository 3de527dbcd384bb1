"""Views of the pairs of a contrastive step: each distinct prompt once, as tensors, a part in each process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.encoder.encoder import Batch, Encoder, to_float
from models.encoder.picture_store import spans
from models.training.augmentation import DRAWS, augment
from models.training.distributed import Processes
from models.training.loop import even_chunks
from models.training.pairs import QUERY, Choice, Pairs
from moonlake.arrays import Float64s, Int8s, Int64s

CODES = QUERY + 1


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that are computed at once; `images` float32 [N, 3, H, W] are theirs, augmented."""

    batch: Batch
    images: Tensor


@dataclass(frozen=True, slots=True)
class Views:
    """The distinct contents of a step, each with what is shown of it.

    Attributes:
        contents: int64 [V], rows of the pairs' contents.
        shown: int8 [V], codes of SHOWN, or QUERY.
        queries, items, hard: int64 [B], [B], [H]: views of the pairs' queries, products and hard negatives.
    """

    contents: Int64s
    shown: Int8s
    queries: Int64s
    items: Int64s
    hard: Int64s

    def __len__(self) -> int:
        return len(self.contents)


def views_of(pairs: Pairs, chosen: Int64s, hard_negatives: int, rng: np.random.Generator) -> Views:
    """The views of some pairs; a content that several of them show in the same way is one view.

    Args: hard_negatives: at most so many of each pair's hard negatives are drawn; shown as their pair's product is.
    """
    hard = [_some(pairs.hard[pair], hard_negatives, rng) for pair in chosen] if hard_negatives else []
    hard_contents = np.concatenate(hard) if hard else np.zeros(0, np.int64)
    shown = pairs.shown[chosen].astype(np.int64)
    hard_shown = np.repeat(shown, [len(one) for one in hard]) if hard else np.zeros(0, np.int64)
    keys = np.concatenate(
        [
            pairs.anchors[chosen] * CODES + QUERY,
            pairs.positives[chosen] * CODES + shown,
            hard_contents * CODES + hard_shown,
        ]
    )
    distinct, view = np.unique(keys, return_inverse=True)
    queries, items, hard_views = np.split(view, [len(chosen), 2 * len(chosen)])
    return Views(distinct // CODES, (distinct % CODES).astype(np.int8), queries, items, hard_views)


class PromptMaker:
    """Turns views into prompts: draws what of them is seen, augments the images, makes tensors."""

    def __init__(
        self, encoder: Encoder, pairs: Pairs, *, item_images: int, text_dropout: float, augment: bool, chunk: int
    ) -> None:
        self.encoder, self.pairs = encoder, pairs
        self.item_images, self.text_dropout, self.augment, self.chunk = item_images, text_dropout, augment, chunk
        self.words = encoder.words(pairs.texts)
        self._lengths = np.array([len(ids) for ids in self.words], np.int64)

    def make(
        self, views: Views, rng: np.random.Generator, process: Processes, only: Int64s | None = None
    ) -> tuple[list[Prompts], Int64s]:
        """This process's prompts in chunks, and of each view the row that its vector has among those of all processes.

        The draws are made for all views, whatever the processes: so the whole batch is the same for any number of them.
        Neighbours are about equally long, so that little is padded, and every process has its share of long ones.

        Args: only: make these views only, in one chunk.
        """
        limits = self.encoder.config.max_images, self.item_images
        draws = rng.random((len(views), self.pairs.draws))
        choice = self.pairs.choose(views.contents, views.shown, *limits, self.text_dropout, draws)
        light = rng.random((len(choice.rows), DRAWS)) if self.augment else None
        order = np.lexsort((self._lengths[views.contents] * choice.with_text, choice.counts))
        parts = [order[rank :: process.count] for rank in range(process.count)]
        row = np.empty(len(views), np.int64)
        row[np.concatenate(parts)] = np.arange(len(views))
        own = parts[process.rank] if only is None else only
        starts = np.cumsum(choice.counts) - choice.counts
        chunks = even_chunks(own, self.chunk if only is None else 0)
        return [self._prompts(views.contents, choice, chunk, starts, light) for chunk in chunks], row

    def _prompts(
        self, contents: Int64s, choice: Choice, some: Int64s, starts: Int64s, light: Float64s | None
    ) -> Prompts:
        counts = choice.counts[some]
        places = spans(starts[some], counts)
        pixels = np.ascontiguousarray(self.pairs.pictures.pixels[choice.rows[places]])
        words: list[Sequence[int]] = [self.words[contents[view]] if choice.with_text[view] else [] for view in some]
        batch = self.encoder.prompts(words, counts.tolist(), torch.from_numpy(pixels[:0]))
        images = to_float(torch.from_numpy(pixels)) if light is None else augment(pixels, light[places])
        return Prompts(batch, images.to(batch.input_ids.device))


def _some(contents: Int64s, count: int, rng: np.random.Generator) -> Int64s:
    return contents if len(contents) <= count else np.sort(rng.choice(contents, count, replace=False))
