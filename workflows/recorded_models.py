"""Embedding spaces with the click models that are recorded of them: the runs that an exchange rate holds fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlake.errors import InputError, NotFound
from moonlake.lake.lake import Lake

if TYPE_CHECKING:
    from models.ctr.model import CtrModel
    from moonlake.embeddings.spaces import Space


@dataclass(frozen=True, slots=True)
class Subject:
    """A space and its runs of the CTR model, by seed."""

    space: Space
    runs: Mapping[str, CtrModel]


def read_subjects(lake: Lake, names: Sequence[str], patterns: Sequence[str]) -> list[Subject]:
    """The spaces with their recorded models.

    Raises:
        InputError: fewer than two, or one named twice.
        NotFound: no such space, or no model of it.
    """
    from moonlake.embeddings.releases import find

    found = [find(lake, name) for name in names]
    if len({space.space_id for space in found}) < max(len(found), 2):
        named = ", ".join(map(str, found))
        raise InputError(f"an exchange rate is between two or more different spaces, found {named}")
    rows = lake.read("model_versions").sort_by("created_at").to_pylist()
    latest = {row["name"]: row for row in rows}  # a model that was trained again stands in for itself
    return [Subject(space, _runs(space, latest, patterns)) for space in found]


def _runs(space: Space, recorded: Mapping[str, Mapping[str, Any]], patterns: Sequence[str]) -> dict[str, CtrModel]:
    """The models of a space by name, in order of their seeds."""
    from models.ctr.model import CtrModel

    chosen = {
        name: row
        for name, row in recorded.items()
        if row["space_id"] == space.space_id and any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not chosen:
        raise NotFound(
            f"no CTR model of space {space} is recorded under a name like {', '.join(patterns)}: "
            "train some with `moonlake train ctr --space`, and record them with `moonlake evaluate ctr`"
        )
    found = {name: CtrModel.open(Path(row["artifact"])) for name, row in chosen.items()}
    by_seed: dict[int, str] = {}
    for name, model in found.items():
        if model.model_id != chosen[name]["model_id"]:
            raise InputError(
                f"CTR model {name} was trained again after it was recorded: run moonlake evaluate ctr {name}"
            )
        if (other := by_seed.setdefault(model.config.seed, name)) != name:
            raise InputError(
                f"CTR models {other} and {name} of space {space} have one seed, {model.config.seed}: they are one run; "
                "leave one out with --models"
            )
    return {by_seed[seed]: found[by_seed[seed]] for seed in sorted(by_seed)}


def identity(model: CtrModel) -> dict[str, Any]:
    """All that decides what a CTR model is, but for its seed and its space."""
    start, end = model.lineage.window
    lineage = {
        "training_set_id": model.lineage.training_set_id,
        "training_window": f"[{start.isoformat()}, {end.isoformat()})",
    }
    config = {name: value for name, value in asdict(model.config).items() if name != "seed"}
    return {"kind": type(model).__name__, **lineage, **config}
