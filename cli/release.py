"""`moonlake release`: what each use runs on, switched, switched back, and looked back on."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Json, Output, give
from moonlake.schema.tables import CTR_RANKING, USES
from moonlake.settings import Settings

release_app = typer.Typer(no_args_is_help=True, help="What each use runs on.")


Use = Annotated[str, typer.Option(help=f"{' or '.join(USES)}.")]


@release_app.command()
def show(use: Use = CTR_RANKING, as_json: Json = False, output: Output = None) -> None:
    """Every release of a use, the latest last: it runs on that one now."""
    from moonlake.lake.lake import Lake
    from workflows import releases

    past = releases.history(Lake(Settings.from_environment()), use)
    lines = map(str, past) if past else [f"nothing was released for {use}"]
    give(past, lines, as_json=as_json, output=output)


@release_app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Click model by name or id; for similar_products, the space.")],
    use: Use = CTR_RANKING,
    service: Annotated[str, typer.Option(help="Feature service that the click model reads.")] = USES[CTR_RANKING],
    minimum_gain: Annotated[
        float | None, typer.Option(help="AUC over IDs alone that the low end of its 95% interval must reach.")
    ] = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Switch a use to a click model and the embedding space that it reads, or to a space, in one commit.

    The gates come first: where one fails nothing is switched.
    """
    from moonlake.embeddings.gates import GateLimits
    from workflows import releases

    limits = GateLimits() if minimum_gain is None else GateLimits(min_ctr_gain_auc=minimum_gain)
    released = releases.promote(Settings.from_environment(), name, use=use, service=service, limits=limits)
    give(released, [str(released)], as_json=as_json, output=output)


@release_app.command()
def rollback(use: Use = CTR_RANKING, as_json: Json = False, output: Output = None) -> None:
    """Switch a use back to what it ran on before, in one commit; given again, one release further back."""
    from workflows import releases

    back = releases.roll_back(Settings.from_environment(), use)
    lines, space = [str(back.released)], back.released.space.name
    if back.missing:
        lines.append(
            f"{back.missing:,} of {back.on_sale:,} products on sale have no vector in the space {space}: "
            f"moonlake backfill run {space} embeds them"
        )
    give(back, lines, as_json=as_json, output=output)
