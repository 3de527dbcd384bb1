"""The sources by name, and the staging of each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from moonlake.errors import InputError
from moonlake.progress import UNWATCHED, Progress
from moonlake.settings import Settings


class SourceName(StrEnum):
    """Sources that rows can come from."""

    MARKETPLACE = "marketplace"
    MYNTRA = "myntra"
    FILES = "files"
    TAOBAO = "taobao"
    REES46 = "rees46"
    OTTO = "otto"
    ESCI = "esci"
    OPEN_BANDIT = "open_bandit"


BEHAVIOR_LOGS = (SourceName.TAOBAO, SourceName.REES46, SourceName.OTTO)
"""Sources that are what people did and nothing to look at: no titles, no images, no impressions."""


WITHOUT_PICTURES = (*BEHAVIOR_LOGS, SourceName.ESCI, SourceName.OPEN_BANDIT)


def stage(
    settings: Settings,
    source: SourceName,
    *,
    preset: str,
    data: Path | None,
    products: int,
    name: str = "files",
    negatives: int = 0,
    progress: Progress = UNWATCHED,
) -> Path:
    """The folder of the staged source; staged before from the same inputs, it is found again.

    Raises: InputError: no data folder where the source needs one, or one that cannot be read; negatives asked for a
        source that has impressions of its own.
    """
    if negatives and source not in BEHAVIOR_LOGS:
        raise InputError(f"--negatives {negatives}: only a log without impressions takes it, not {source.value}")
    with progress.step(f"Staging {source.value}") as step:
        if source is SourceName.MARKETPLACE:
            from sources.simulator.marketplace import stage_marketplace

            return stage_marketplace(preset, settings, progress=step)
        if data is None:
            raise InputError(f"--source {source.value} needs --data: the folder of the files")
        if source is SourceName.MYNTRA:
            from sources.datasets.myntra import stage_myntra

            return stage_myntra(data, settings, products=products, progress=step)
        if source in BEHAVIOR_LOGS:
            from sources.datasets.otto import stage_otto
            from sources.datasets.rees46 import stage_rees46
            from sources.datasets.taobao import stage_taobao

            stage_it = dict(zip(BEHAVIOR_LOGS, (stage_taobao, stage_rees46, stage_otto), strict=True))[source]
            return stage_it(data, settings, negatives=negatives, progress=step)
        if source is SourceName.ESCI:
            from sources.datasets.esci import stage_esci

            return stage_esci(data, settings, progress=step)
        if source is SourceName.OPEN_BANDIT:
            from sources.datasets.open_bandit import stage_open_bandit

            return stage_open_bandit(data, settings, progress=step)
        from sources.own_files.stage import stage_own_files

        return stage_own_files(data, settings, name=name, progress=step)
