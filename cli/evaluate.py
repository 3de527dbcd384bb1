"""`moonlake evaluate`: an encoder, click models, or what a gain of one is worth to the other."""

from __future__ import annotations

import typer

from cli.evaluate_ctr import evaluate_ctr
from cli.evaluate_encoder import evaluate_encoder
from cli.evaluate_exchange_rate import exchange_rate

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure an encoder or click models on later rows.")
evaluate_app.command("encoder")(evaluate_encoder)
evaluate_app.command("ctr")(evaluate_ctr)
evaluate_app.command("exchange-rate")(exchange_rate)
