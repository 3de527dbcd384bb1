"""`moonlake feature`: register feature definitions, fill and read the online store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from cli.options import Json, Output, give
from moonlake.reports import as_json as json_of
from moonlake.schema.tables import CTR_RANKING, USES
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from moonlake.words import values_by_name

feature_app = typer.Typer(no_args_is_help=True, help="Feature definitions and the online store.")


@feature_app.command()
def apply(as_json: Json = False, output: Output = None) -> None:
    """Register the definitions of feature_repo/, as `feast -c feature_repo apply` does."""
    from moonlake.feast_delta import store

    applied = store.apply(Settings.from_environment())
    views = {
        service.name: [projection.name for projection in service.feature_view_projections]
        for service in applied.list_feature_services()
    }
    lines = [f"{service}: {', '.join(of_service)}" for service, of_service in views.items()]
    give({"services": views}, lines, as_json=as_json, output=output)


@feature_app.command()
def materialize(
    views: Annotated[list[str] | None, typer.Argument(help="Feature views; default: all.")] = None,
    end: Annotated[str | None, typer.Option(help="Serve facts up to this moment; default: now.")] = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Bring the online store up to a moment: what changed since it was last served, or all where that is not known."""
    from moonlake.feast_delta import materialize

    moment = parse_moment(end) if end else datetime.now(UTC)
    served = materialize.run(Settings.from_environment(), moment, views)
    give(served, map(str, served), as_json=as_json, output=output)


@feature_app.command()
def online(
    entities: Annotated[list[str], typer.Argument(help="Join keys, such as user_id=u1 product_id=p1.")],
    service: Annotated[str, typer.Option(help="Feature service.")] = USES[CTR_RANKING],
    log: Annotated[bool, typer.Option("--log", help="Keep the request, for `moonlake check consistency`.")] = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Read the online features of one combination of join keys; they are JSON with and without --json."""
    from moonlake.feast_delta.serving_logs.request_log import RequestLog, log_of_service
    from moonlake.feast_delta.store import feature_store, online_features

    keys = values_by_name(entities, "join keys")
    settings = Settings.from_environment()
    store = feature_store(settings)
    rows = online_features(store, service, {name: [value] for name, value in keys.items()})
    if log:
        with RequestLog(store, service, log_of_service(settings, store, service)) as requests:
            requests(rows)
    row = rows.to_pylist()[0]
    give(row, [json_of(row, indent=2)], as_json=as_json, output=output)
