"""`moonlake check`: do tables keep their contracts, and does an embedding space pass its gates."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli.check_consistency import consistency
from moonlake.errors import ContractError, GateFailed
from moonlake.settings import Settings

if TYPE_CHECKING:
    from moonlake.embeddings.gates import Check, GateLimits
    from moonlake.embeddings.spaces import Space
    from moonlake.lake.lake import Lake

check_app = typer.Typer(
    no_args_is_help=True, help="Whether tables, embedding spaces and served features are as they should be."
)
check_app.command()(consistency)

USE = "ctr_ranking"
SAMPLE_ROWS = 2_000


@check_app.command()
def tables(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tables of the lake; default: all that were written.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to look at in each table, at most.")] = SAMPLE_ROWS,
) -> None:
    """Hold a sample of each table's rows against its contract; fails when a rule is broken."""
    from moonlake.lake.lake import Lake
    from moonlake.maintenance.data_docs import check_rows, pages, sample_rows
    from moonlake.schema.tables import TABLES

    settings = Settings.from_environment()
    lake = Lake(settings)
    bad = []
    for name in names or [name for name in TABLES if lake.exists(name)]:
        found = sample_rows(lake, name, rows)
        broken = check_rows(settings.home, name, found)
        said = ", ".join(f"{rule} ({count})" for rule, count in broken.items())
        typer.echo(f"{name}: {len(found):,} rows, {f'broken: {said}' if said else 'all keep the contract'}")
        bad += [name] if broken else []
    typer.echo(f"open {pages(settings.home)} in a browser")
    if bad:
        raise ContractError(f"{len(bad)} of the tables hold rows that break their contract: {', '.join(bad)}")


@check_app.command()
def space(
    name: Annotated[str, typer.Argument(help="Embedding space by name or id, or 'live'.")],
    use: Annotated[str, typer.Option(help="What it would be released for: compared with what runs there.")] = USE,
) -> None:
    """Run the gates of an embedding space, keep what came of them; fails when a gate does."""
    from moonlake.embeddings import releases
    from moonlake.lake.lake import Lake

    settings = Settings.from_environment()
    lake = Lake(settings)
    check = check_space(settings, lake, releases.find(lake, name), compared_with=use)
    for gate in check.gates:
        word = {True: "passed", False: "FAILED", None: "-"}[gate.passed]
        typer.echo(f"{word:<7} {gate}")
    require_passed(settings, check)


def check_space(
    settings: Settings,
    lake: Lake,
    found: Space,
    *,
    compared_with: str,
    use: str | None = None,
    model_id: str | None = None,
    limits: GateLimits | None = None,
) -> Check:
    """Every gate of a space, entered in `gate_results` and in the Data Docs.

    Args:
        compared_with: the use whose live space it is compared with.
        use, model_id: what it is to be released for, and with; then the gates of the CTR model are among them.
    """
    from dataclasses import replace

    from models.evaluation.release_gates import ModelToRelease, agreement_gate, ctr_gates, recall_gate
    from moonlake.embeddings import releases
    from moonlake.embeddings.gates import Check, Gate, GateLimits, drift_gate, overlap_gate, record, vector_gates
    from moonlake.embeddings.vector_stats import contents_now, read_figures, recent_ids, recent_since
    from moonlake.maintenance.data_docs import check_gates, check_rows, sample_rows

    limits, now = limits or GateLimits(), datetime.now(UTC)
    past = releases.history(lake, compared_with)
    running = past[-1] if past else None
    live = releases.find(lake, running.space_id) if running else None
    check = Check(found, use, model_id, now)
    contents, since = contents_now(lake, found.space_id), recent_since(lake, found, limits.recent_hours)
    figures = read_figures(lake, found, contents, since)
    recent = recent_ids(lake, found, limits.agreement_contents // 2, since)
    again = [*contents.known(recent), *contents.sample(limits.agreement_contents - len(recent), check.check_id)]
    recall = recall_gate(lake, found, live, compared_with, limits)
    rows = sample_rows(lake, "embeddings", SAMPLE_ROWS, found.space_id)
    broken = check_rows(settings.home, "embeddings", rows, called=f"embeddings_{found.name}")
    said = ", ".join(f"{rule} ({count})" for rule, count in broken.items()) or "all keep it"
    gates = [
        *vector_gates(figures, limits),
        Gate("contract", sum(broken.values()), f"of {len(rows):,} sampled rows, {said}", maximum=0),
        drift_gate(figures, limits),
        overlap_gate(lake, found, live, contents, check.check_id, limits),
        agreement_gate(lake, found, again, limits),
        recall.gate,
    ]
    if model_id is not None:
        from cli.release import find_model

        runs = running.model_id if running else None
        named = (runs, find_model(lake, runs)["name"]) if runs else None
        model = ModelToRelease(model_id, find_model(lake, model_id)["name"], named)
        gates += ctr_gates(lake, model, recall, limits)
    check = replace(check, gates=tuple(gates))
    record(lake, check, written_at=now)
    check_gates(settings.home, check)
    return check


def require_passed(settings: Settings, check: Check) -> None:
    """Nothing, if every gate of a check passed. Raises GateFailed, naming those that did not and where to look."""
    from moonlake.maintenance.data_docs import pages

    if failed := check.failed:
        lines = "".join(f"\n  {gate}" for gate in failed)
        where = f"see table gate_results, check_id {check.check_id}, or open {pages(settings.home)}"
        raise GateFailed(f"embedding space {check.space} did not pass {len(failed)} gates:{lines}\n{where}")
