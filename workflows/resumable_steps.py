"""Steps that run once for each state of their inputs, and remember what they found and how long it took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonlake.files import atomic_write
from moonlake.hashing import stable_hash
from moonlake.progress import UNWATCHED, Progress

Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that was done: hash of its inputs, what it found, and the seconds that it took then."""

    title: str
    inputs: str
    found: Found
    seconds: float


class Steps:
    """The steps of one command, kept in a JSON file so that the next call can skip what is unchanged.

    Each step is shown by `progress`, and `say` takes a line with its outcome.

    A step's work must itself be idempotent: it may be done again after a kill, or when its inputs changed.
    """

    def __init__(self, path: Path, say: Callable[[str], None], progress: Progress = UNWATCHED) -> None:
        self.path = path
        self._say, self._progress = say, progress
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._known = {name: StepRecord(**record) for name, record in known.items()}
        self.records: dict[str, StepRecord] = {}

    def run(self, name: str, title: str, inputs: Any, work: Callable[[], Found]) -> Found:
        """The step's result: computed now, or kept from its last run with the same inputs.

        Args:
            inputs: everything that the result depends on, as plain values.
            work: returns plain values that JSON can hold.
        """
        key = stable_hash(json.dumps([name, inputs], sort_keys=True, default=str))
        known = self._known.get(name)
        if known is not None and known.inputs == key:
            self.records[name] = known
            self._say(f"= {title}: unchanged ({known.seconds:.1f} s when it ran)")
            return known.found
        started = time.monotonic()
        with self._progress.step(title):
            found = work()
        record = StepRecord(title, key, found, time.monotonic() - started)
        self._known[name] = self.records[name] = record
        self._save()
        self._say(f"+ {title}: {record.seconds:.1f} s")
        return found

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fields = {name: {key: getattr(record, key) for key in record.__slots__} for name, record in self._known.items()}
        with atomic_write(self.path) as file:
            file.write_text(json.dumps(fields, indent=1), encoding="utf-8")
