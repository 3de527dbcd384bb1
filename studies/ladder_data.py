"""Data that the encoder ladder trains and is measured on: read once from the lake, then mapped by every worker."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.encoder.picture_store import PictureStore
from models.evaluation.purchase_trials import Trials, read_trials
from models.evaluation.recall import places_of, require_trials, vectors_of
from models.evaluation.representations import DecodedContents, pixel_baseline
from models.training.captioning import Descriptions, read_descriptions
from models.training.contrastive import TABLES_READ
from models.training.pairs import SHOWN, Pairs, read_pairs
from models.training.stages import versions as table_versions
from moonlake.arrays import Int64s, UInt8s
from moonlake.errors import InputError
from moonlake.files import atomic_write
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from sources.own_files.staging import SourceInfo, stage_path
from workflows.ceilings import open_latents

IMAGE_SIZE = (64, 64)
PAIRS_TABLE = "contrastive_pairs"
TABLES = (*TABLES_READ, "behaviors")
MODALITIES = ("image", "text", "product")
PAIR_TYPES = tuple(f"{asked}_to_{shown}" for asked in MODALITIES for shown in SHOWN)


@dataclass(frozen=True, slots=True)
class Measured:
    """The trials of the ladder, with what their places are held against.

    Attributes:
        floor, ceiling: int64 [T]: places by raw pixels and by the true latents of the simulation.
    """

    trials: Trials
    decoded: DecodedContents
    floor: Int64s
    ceiling: Int64s


@dataclass(frozen=True, slots=True)
class LadderData:
    """Everything that the ladder reads.

    Attributes:
        versions: of the tables that were read.
        pairs: by stage; stage 2 is absent where no rung needs it.
    """

    info: SourceInfo
    versions: Mapping[str, int]
    pairs: dict[int, Pairs]
    described: Descriptions
    measured: Measured


def open_data(
    settings: Settings,
    source: str,
    work: Path,
    stages: Iterable[int],
    pair_types: Iterable[str],
    limit: int,
    versions: Mapping[str, int] | None = None,
) -> LadderData:
    """The data of a simulated source, read from the lake where the folder does not hold it yet.

    Args:
        work: folder of the study. What it keeps goes by the versions of the tables that were read.
        pair_types: those that are trained on; empty for all.
        versions: of the tables that are meant; None for the last. A worker takes what the study began with.
        limit: of pairs, products described and trials, to try the study out; 0 for all.
    Raises: NotFound, InputError: no such source, or nothing to train or to measure on.
    """
    info = SourceInfo.read(stage_path(settings, source))
    if info.t1 is None or info.window is None:
        raise InputError(f"source {source} has no t1 and no window: expected one with behaviour")
    t1, end = info.t1, info.window[1]
    lake = Lake(settings)
    known = dict(versions) if versions is not None else table_versions(lake, TABLES)

    def kept(name: str, read: Callable[[], Any], *, of_pairs: bool = False) -> Any:
        used = sorted(one for one in known.items() if of_pairs or one[0] != PAIRS_TABLE)
        return _kept(work / "data" / f"{name}-{stable_hash(repr((info.fingerprint, used)))[:12]}", read)

    pairs = {}
    for stage in sorted(set(stages)):
        read = partial(_read_pairs, lake, t1, stage)
        found = kept(f"stage{stage}", read, of_pairs=True)
        pairs[stage] = _limited(of_types(found, pair_types), limit)
    described = kept("descriptions", lambda: read_descriptions(lake, t1, IMAGE_SIZE))
    measured = kept("measured", lambda: _read_measured(lake, t1, end, settings.truth_of(source)))
    if limit:
        described = replace(described, parts=described.parts[:limit])
        measured = _fewer_trials(lake, measured, limit, settings.truth_of(source))
    return LadderData(info, known, pairs, described, measured)


def of_types(pairs: Pairs, pair_types: Iterable[str]) -> Pairs:
    """The pairs of some types; all of them for none. Raises InputError for a type that there is not."""
    wanted = set(pair_types)
    if unknown := sorted(wanted - set(PAIR_TYPES)):
        raise InputError(f"pair types {', '.join(unknown)}: expected some of {', '.join(PAIR_TYPES)}")
    if not wanted:
        return pairs
    has_image = pairs.pictures.counts[pairs.anchors] > 0
    has_text = np.array([bool(text) for text in pairs.texts], bool)[pairs.anchors]
    asked = np.where(has_image & has_text, 2, np.where(has_text, 1, 0))  # places in MODALITIES
    codes = [place for place, name in enumerate(PAIR_TYPES) if name in wanted]
    return _chosen(pairs, np.flatnonzero(np.isin(asked * len(SHOWN) + pairs.shown, codes)))


def _chosen(pairs: Pairs, rows: Int64s) -> Pairs:
    hard = [pairs.hard[row] for row in rows.tolist()]
    return replace(pairs, groups=pairs.groups[rows], shown=pairs.shown[rows], hard=hard)


def _limited(pairs: Pairs, limit: int) -> Pairs:
    """Some pairs, evenly over all."""
    if not limit or limit >= len(pairs):
        return pairs
    return _chosen(pairs, np.linspace(0, len(pairs) - 1, limit).astype(np.int64))


def _read_pairs(lake: Lake, before: datetime, stage: int) -> Pairs:
    pairs = read_pairs(lake, before, IMAGE_SIZE, stage)
    if len(pairs) < 2:
        raise InputError(f"contrastive_pairs holds {len(pairs)} pairs of stage {stage} before t1: build them first")
    return pairs


def _read_measured(lake: Lake, start: datetime, end: datetime, truth: Path) -> Measured:
    trials = read_trials(lake, start, end, "image_search")
    require_trials(trials)
    return Measured(trials, DecodedContents.read(lake, trials.contents, IMAGE_SIZE), *_bounds(lake, trials, truth))


def _bounds(lake: Lake, trials: Trials, truth: Path) -> tuple[Int64s, Int64s]:
    floor = places_of(trials, *vectors_of(trials, pixel_baseline(lake)))
    return floor, places_of(trials, *vectors_of(trials, open_latents(lake, truth)))


def _fewer_trials(lake: Lake, measured: Measured, limit: int, truth: Path) -> Measured:
    """The first trials, in a pool of their products and as many others."""
    trials = measured.trials
    positives, query_rows = trials.positives[:limit], trials.query_rows[:limit]
    pool = np.union1d(positives, np.arange(min(limit, len(trials.pool))))
    queries = np.unique(query_rows)
    fewer = replace(
        trials,
        queries=[trials.queries[row] for row in queries],
        pool=[trials.pool[row] for row in pool],
        products=[trials.products[row] for row in pool],
        query_rows=np.searchsorted(queries, query_rows),
        positives=np.searchsorted(pool, positives),
        own=np.full(len(positives), -1, np.int64),
        segments={},
    )
    return Measured(fewer, measured.decoded, *_bounds(lake, fewer, truth))


def _kept(path: Path, read: Callable[[], Any]) -> Any:
    """The result of `read`, kept on disk: its pictures as an array that is mapped into memory, the rest pickled."""
    rest, pixels = path.with_suffix(".pickle"), path.with_suffix(".npy")
    if not rest.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = read()
        store = _store_of(found)
        with atomic_write(pixels) as file:
            np.save(file, store.pixels)
        with atomic_write(rest) as file, file.open("wb") as stream:
            pickle.dump(_with_pixels(found, store.pixels[:0]), stream, protocol=5)
    with rest.open("rb") as stream:  # written by this very function
        found = pickle.load(stream)
    return _with_pixels(found, np.asarray(np.load(pixels, mmap_mode="r")))


def _store_of(found: Pairs | Descriptions | Measured) -> PictureStore:
    return found.decoded.pictures if isinstance(found, Measured) else found.pictures


def _with_pixels(found: Any, pixels: UInt8s) -> Any:
    pictures = replace(_store_of(found), pixels=pixels)
    if isinstance(found, Measured):
        return replace(found, decoded=replace(found.decoded, pictures=pictures))
    return replace(found, pictures=pictures)
