"""Checkpoints of a training run: written whole or not at all, and refused where the run would be another one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moonlake.errors import InputError
from moonlake.files import atomic_write

FORMAT = 1
KEPT = 2
"""Checkpoints that are kept: the last, and the one before it."""

Identity = Mapping[str, Any]
"""What a run is a function of (configuration, data, start), as plain nested values."""


class HasState(Protocol):
    """State that a checkpoint holds beside the model."""

    def state_dict(self) -> Any:
        """All of it."""

    def load_state_dict(self, state: Any) -> None:
        """Go on from it."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The point at which a checkpoint left a run.

    Attributes:
        step: steps that are done.
        losses: float64 [step].
        seconds: time that they took.
    """

    step: int
    losses: list[float]
    seconds: float


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder
        self.identity = identity

    def save(self, at: Resumed, model: nn.Module, optimizer: HasState) -> None:
        """Write the state after a step. A process that dies meanwhile leaves the earlier checkpoints as they were."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "step": at.step,
            "losses": torch.tensor(at.losses, dtype=torch.float64),
            "seconds": at.seconds,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with atomic_write(self.folder / f"step-{at.step:09d}.pt") as unfinished:
            torch.save(state, unfinished)
        whole = self._files()[-KEPT:]
        for old in set(self.folder.iterdir()) - set(whole):  # what a killed process left is large too
            old.unlink()

    def resume(self, model: nn.Module, optimizer: HasState) -> Resumed:
        """Put the state of the last checkpoint into model and optimiser; at step 0 if there is none.

        Raises: InputError: the checkpoint is of another configuration, other data or another start.
        """
        files = self._files()
        if not files:
            return Resumed(0, [], 0.0)
        state: dict[str, Any] = torch.load(files[-1], map_location="cpu", weights_only=True)
        self._require_same(files[-1], state)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        losses: Tensor = state["losses"]
        return Resumed(state["step"], losses.tolist(), state["seconds"])

    def clear(self) -> None:
        """Remove all of them: the run is finished, or starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def _require_same(self, file: Path, state: Mapping[str, Any]) -> None:
        anew = "give the same command as before to go on, or --fresh to start anew"
        if state.get("format") != FORMAT:
            raise InputError(f"{file}: format {state.get('format')}, expected {FORMAT}: --fresh starts anew")
        found, expected = flat(state["identity"]), flat(self.identity)
        different = [
            f"{key} was {found.get(key, 'absent')}, is {expected.get(key, 'absent')}"
            for key in sorted(found.keys() | expected.keys())
            if found.get(key) != expected.get(key) or (key in found) != (key in expected)
        ]
        if different:
            raise InputError(f"{file} is of another run: {'; '.join(different)}: {anew}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name; lists as tuples.

    >>> flat({"a": {"b": [1, 2]}, "c": None})
    {'a.b': (1, 2), 'c': None}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return found
