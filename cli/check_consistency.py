"""`moonlake check consistency`: logged online requests, replayed offline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any

import typer

from cli.options import Json, Output, give
from moonlake.errors import InputError
from moonlake.schema.tables import CTR_RANKING, USES
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment

COUNTS = ("match", "neither", "mismatch", "missing", "extra", "unknown")
DISTANCES = ("cosine_mean", "cosine_least", "edit_distance_mean", "edit_distance_greatest")


def consistency(
    service: Annotated[str, typer.Option(help="Feature service.")] = USES[CTR_RANKING],
    since: Annotated[str | None, typer.Option(help="Requests from this moment on.")] = None,
    until: Annotated[str | None, typer.Option(help="Requests before this moment.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="At most that many rows, chosen at random.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="request: what a training row of that moment holds; served: what the online store had been brought"
            " to. Default: request, or served where ages are not measured by the clock."
        ),
    ] = None,
    lag: Annotated[str, typer.Option(help="How long online may be behind, such as 90s, 15m, 2h, 1d.")] = "0s",
    log: Annotated[str | None, typer.Option(help="Delta table of requests; default: that of the service.")] = None,
    fail_under: Annotated[float, typer.Option(min=0, max=1, help="Exit 1 when a smaller share of values match.")] = 0.0,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Hold what was served against what training would see: match, mismatch, missing, extra by feature."""
    from moonlake.feast_delta.serving_logs.consistency import replay
    from moonlake.feast_delta.serving_logs.request_log import log_of_service
    from moonlake.feast_delta.store import feature_store, service_views

    settings = Settings.from_environment()
    store = feature_store(settings)
    service_views(store, service)
    if as_of not in (None, "request", "served"):
        raise InputError(f"--as-of is request or served, found {as_of!r}")
    found = replay(
        store,
        service,
        log or log_of_service(settings, store, service).path,
        since=parse_moment(since) if since else None,
        until=parse_moment(until) if until else None,
        sample=sample,
        lag=parse_duration(lag),
        as_of=as_of,  # type: ignore[arg-type]
    )
    give(found, _lines(found.as_dict()), as_json=as_json, output=output)
    if found.share < fail_under:
        typer.echo(f"{found.share:.2%} of the values match, less than {fail_under:.2%}", err=True)
        raise typer.Exit(1)


def parse_duration(text: str) -> timedelta:
    """The duration that a number and a unit name: s, m, h or d.

    >>> parse_duration("90s") == parse_duration("1.5m")
    True
    """
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    stated = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if stated is None:
        raise InputError(f"{text!r}: expected a number and a unit, such as 90s, 15m, 2h, 1d")
    return timedelta(**{units[stated[2]]: float(stated[1])})


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['service']}: {found['rows']} logged rows, as of {found['as_of']}, {found['share']:.2%} match"
    width = max(len(feature["feature"]) for feature in found["features"])
    yield "  ".join(["feature".ljust(width), *(name.rjust(8) for name in COUNTS)])
    for feature in found["features"]:
        distances = [f"{name} {feature[name]:.4f}" for name in DISTANCES if name in feature]
        counts = (str(feature[name]).rjust(8) for name in COUNTS)
        yield "  ".join([feature["feature"].ljust(width), *counts, *distances])
    for feature in found["features"]:
        for example in feature["examples"]:
            keys = " ".join(f"{name}={value}" for name, value in example.items() if name not in ("online", "offline"))
            sides = f"online {_short(example['online'])}, offline {_short(example['offline'])}"
            yield f"{feature['feature']}: {keys}: {sides}"


def _short(value: object, longest: int = 80) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
