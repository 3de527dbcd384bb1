"""Check a space, release it, roll back: each use's embedding space and click model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from moonlake.embeddings import releases
from moonlake.embeddings.checks import Check, PassedCheck, record
from moonlake.embeddings.contents import unreadable_contents
from moonlake.embeddings.gates import Gate, GateLimits, drift_gate, overlap_gate, vector_gates
from moonlake.embeddings.snapshots import Snapshot, write_snapshot
from moonlake.embeddings.vector_stats import contents_now, read_figures, recent_ids, recent_since
from moonlake.errors import GateFailed, NotFound, SpaceMismatch
from moonlake.lake.lake import Lake
from moonlake.schema.tables import CTR_RANKING, USES

if TYPE_CHECKING:
    from models.evaluation.release_gates import ModelToRelease
    from moonlake.embeddings.releases import Release
    from moonlake.embeddings.spaces import Space
    from moonlake.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A click model as `model_versions` last described it.   space_id: None where it reads IDs only."""

    model_id: str
    name: str
    space_id: str | None
    training_set_id: str
    artifact: str
    event_timestamp: datetime


@dataclass(frozen=True, slots=True)
class Released:
    """A release with its space and its click model, None without one."""

    release: Release
    space: Space
    model: ModelVersion | None

    def __str__(self) -> str:
        one, model = self.release, self.model.name if self.model else "no model"
        return f"{one.event_timestamp:%Y-%m-%d %H:%M:%S}  {one.use}  {model} on space {self.space}"


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The release that runs again, and products on sale, some of them `missing` a vector in its space.

    Products of which nothing can be read are not missing.
    """

    released: Released
    on_sale: int
    missing: int


def check_space(
    settings: Settings,
    space: Space,
    *,
    compared_with: str = CTR_RANKING,
    use: str | None = None,
    model_id: str | None = None,
    limits: GateLimits | None = None,
) -> Check:
    """Every gate of a space, entered in `gate_results` and in the Data Docs.

    Args:
        compared_with: the use whose live space it is compared with, unless `use` is given.
        use, model_id: what it is to be released for, and with; then the gates of the CTR model are among them.
    """
    # Torch and Great Expectations: a roll-back needs neither.
    from models.evaluation.release_gates import agreement_gate, ctr_gates, recall_gate
    from moonlake.maintenance.data_docs import check_gates

    limits, now, lake, compared_with = limits or GateLimits(), datetime.now(UTC), Lake(settings), use or compared_with
    check = Check.begin(lake, space, use=use, model_id=model_id, at=now)
    past = releases.history(lake, compared_with)
    running = past[-1] if past else None
    live = releases.find(lake, running.space_id) if running else None
    contents, since = contents_now(lake, space.space_id), recent_since(lake, space, limits.recent_hours)
    figures = read_figures(lake, space, contents, since)
    recent = recent_ids(lake, space, limits.agreement_contents // 2, since)
    again = [*contents.known(recent), *contents.sample(limits.agreement_contents - len(recent), check.check_id)]
    recall = recall_gate(lake, space, live, compared_with, limits)
    gates = [
        *vector_gates(figures, limits),
        _contract_gate(settings, lake, space),
        drift_gate(figures, limits),
        overlap_gate(lake, space, live, contents, check.check_id, limits),
        agreement_gate(lake, space, again, limits),
        recall.gate,
    ]
    if model_id is not None:
        gates += ctr_gates(lake, _to_release(lake, model_id, running), recall, limits)
    check = replace(check, gates=tuple(gates))
    record(lake, check, written_at=now)
    check_gates(settings, check)
    return check


def require_passed(settings: Settings, check: Check) -> PassedCheck:
    """The proof of a passed check, for a release. Raises GateFailed, which names the gates that failed."""
    from moonlake.maintenance.data_docs import pages

    try:
        return check.require_passed()
    except GateFailed as error:
        raise GateFailed(f"{error}, or open {pages(settings)}") from None


def promote(
    settings: Settings,
    name: str,
    *,
    use: str = CTR_RANKING,
    service: str = USES[CTR_RANKING],
    limits: GateLimits | None = None,
) -> Released:
    """A click model and the space that it reads, or a space alone, released for a use once every gate has passed.

    Args:
        name: the click model by name or id; for a use without one, the space.
        service: Feast feature service that the click model reads.

    Raises:
        GateFailed: a gate failed; the use runs on what it ran on.
        SpaceMismatch: the click model reads IDs only.
    """
    lake = Lake(settings)
    if use != CTR_RANKING:
        space = releases.find(lake, name)
        check = require_passed(settings, check_space(settings, space, use=use, limits=limits))
        return _release(settings, use, space, check)
    model = find_model(lake, name)
    if model.space_id is None:
        raise SpaceMismatch(f"CTR model {model.name} reads IDs only: a release names the space that its model reads")
    space = releases.find(lake, model.space_id)
    checked = check_space(settings, space, use=use, model_id=model.model_id, limits=limits)
    return _release(settings, use, space, require_passed(settings, checked), model.model_id, service)


def roll_back(settings: Settings, use: str = CTR_RANKING) -> RolledBack:
    """A use switched back to its release before the current one; once more, one release further back."""
    lake = Lake(settings)
    earlier = releases.before_current(lake, use)
    snapshot = write_snapshot(lake, earlier.space_id, settings.snapshot(earlier.space_id))
    again = releases.roll_back(lake, use, snapshot=str(snapshot.folder), written_at=datetime.now(UTC))
    released = named(lake, again)
    return RolledBack(released, len(snapshot.products), _missing(lake, snapshot, released.space))


def history(lake: Lake, use: str = CTR_RANKING) -> list[Released]:
    """Every release of a use, the latest last."""
    return [named(lake, one) for one in releases.history(lake, use)]


def named(lake: Lake, one: Release) -> Released:
    """A release with its space and its click model."""
    model = find_model(lake, one.model_id) if one.model_id else None
    return Released(one, releases.find(lake, one.space_id), model)


def find_model(lake: Lake, name_or_id: str) -> ModelVersion:
    """The click model of that id, or the latest of that name. Raises NotFound, with the names there are."""
    columns = [field.name for field in fields(ModelVersion)]
    rows = lake.read("model_versions", [*columns, "created_at"]).sort_by("created_at").to_pylist()
    found = [row for row in rows if name_or_id in (row["model_id"], row["name"])]
    if not found:
        names = ", ".join(sorted({row["name"] for row in rows})) or "none: train and evaluate one"
        raise NotFound(f"no CTR model {name_or_id!r} in model_versions; there are {names}")
    return ModelVersion(**{name: found[-1][name] for name in columns})


def _release(
    settings: Settings,
    use: str,
    space: Space,
    check: PassedCheck,
    model_id: str | None = None,
    service: str | None = None,
) -> Released:
    """The use on a space, with the space's snapshot of now."""
    lake = Lake(settings)
    snapshot = write_snapshot(lake, space.space_id, settings.snapshot(space.space_id)).folder
    parts = {"model_id": model_id, "feature_service": service, "snapshot": str(snapshot)}
    return named(lake, releases.release(lake, use, space.space_id, check=check, **parts, written_at=datetime.now(UTC)))


def _contract_gate(settings: Settings, lake: Lake, space: Space) -> Gate:
    """The gate on rows of a sample of the space's vectors that break the contract of `embeddings`."""
    from moonlake.maintenance.data_docs import SAMPLE_ROWS, check_rows, sample_rows

    rows = sample_rows(lake, "embeddings", SAMPLE_ROWS, space.space_id)
    broken = check_rows(settings, "embeddings", rows, called=f"embeddings_{space.name}")
    said = ", ".join(f"{rule} ({count})" for rule, count in broken.items()) or "all keep it"
    return Gate("contract", sum(broken.values()), f"of {len(rows):,} sampled rows, {said}", maximum=0)


def _to_release(lake: Lake, model_id: str, running: Release | None) -> ModelToRelease:
    from models.evaluation.release_gates import ModelToRelease

    runs = running.model_id if running else None
    return ModelToRelease(
        model_id, find_model(lake, model_id).name, (runs, find_model(lake, runs).name) if runs else None
    )


def _missing(lake: Lake, snapshot: Snapshot, space: Space) -> int:
    """The number of products on sale that came in since a space was filled, but for unreadable ones."""
    content_ids = np.array(list(snapshot.products.values()), str)
    missing = content_ids[snapshot.rows_of(pa.array(content_ids, pa.string())) < 0]
    return int((~np.isin(missing, unreadable_contents(lake, space.space_id))).sum())
