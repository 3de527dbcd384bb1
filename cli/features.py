"""`moonlake features` and `moonlake training-set`: register, serve and assemble features."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from moonlake.errors import InputError
from moonlake.moments import parse_moment
from moonlake.settings import Settings

features_app = typer.Typer(no_args_is_help=True, help="Feature definitions and the online store.")
training_set_app = typer.Typer(no_args_is_help=True, help="Point-in-time training sets.")

CTR_SERVICE = "ctr_ranking_v1"


@features_app.command()
def apply() -> None:
    """Register the definitions of feature_repo/, as `feast -c feature_repo apply` does."""
    from moonlake.feast_delta import store

    applied = store.apply(Settings.from_environment())
    for service in applied.list_feature_services():
        views = ", ".join(projection.name for projection in service.feature_view_projections)
        typer.echo(f"{service.name}: {views}")


@features_app.command()
def materialize(
    views: Annotated[list[str] | None, typer.Argument(help="Feature views; default: all.")] = None,
    end: Annotated[str | None, typer.Option(help="Serve facts up to this moment; default: now.")] = None,
) -> None:
    """Bring the online store up to a moment."""
    from spark_jobs import materialize_features

    moment = parse_moment(end) if end else datetime.now(UTC)
    names = materialize_features.run(Settings.from_environment(), moment, views)
    typer.echo(f"online up to {moment.isoformat()}: {', '.join(names)}")


@features_app.command()
def online(
    entities: Annotated[list[str], typer.Argument(help="Join keys, such as user_id=u1 product_id=p1.")],
    service: Annotated[str, typer.Option(help="Feature service.")] = CTR_SERVICE,
) -> None:
    """Read the online features of one combination of join keys, as JSON."""
    from moonlake.feast_delta.store import feature_store, online_features

    keys = dict(entity.partition("=")[::2] for entity in entities)
    if unstated := sorted(name for name, value in keys.items() if not value):
        raise InputError(f"join keys {unstated} have no value; write {unstated[0]}=VALUE")
    store = feature_store(Settings.from_environment())
    rows = online_features(store, service, {name: [value] for name, value in keys.items()})
    typer.echo(json.dumps(rows.to_pylist()[0], indent=2))


@training_set_app.command()
def build(
    name: Annotated[str, typer.Argument(help="Name of the training set: its folder.")],
    start: Annotated[str, typer.Option(help="First moment of the label window.")],
    end: Annotated[str, typer.Option(help="Moment behind the label window.")],
    settled_by: Annotated[str | None, typer.Option(help="Leave labels out that settled later; default: --end.")] = None,
    service: Annotated[str, typer.Option(help="Feature service.")] = CTR_SERVICE,
    sequence_length: Annotated[int, typer.Option(min=1, help="Actions of a behaviour sequence.")] = 50,
    space_id: Annotated[str | None, typer.Option(help="Embedding space to read content ids in.")] = None,
) -> None:
    """Join the impressions of a window with their features as of each impression."""
    from moonlake.training_sets import Declaration, describe
    from spark_jobs import build_training_set

    declaration = Declaration(
        name=name,
        start=parse_moment(start),
        end=parse_moment(end),
        settled_by=parse_moment(settled_by) if settled_by else None,
        feature_service=service,
        sequence_length=sequence_length,
        space_id=space_id,
    )
    report = build_training_set.run(Settings.from_environment(), declaration, written_at=datetime.now(UTC))
    state = "built" if report.built else "unchanged"
    typer.echo(f"{report.training_set.folder} ({state})")
    _echo(describe(report.training_set.manifest))


@training_set_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the training set.")],
    manifest: Annotated[bool, typer.Option("--manifest", help="Print the whole manifest.")] = False,
) -> None:
    """Say what a training set was made of."""
    from moonlake.training_sets import TrainingSet, describe

    found = TrainingSet.open(Settings.from_environment().training_sets / name).manifest
    if manifest:
        typer.echo(found.as_json(), nl=False)
    else:
        _echo(describe(found))


def _echo(facts: dict[str, object]) -> None:
    for name, value in facts.items():
        typer.echo(f"  {name}: {value}")
