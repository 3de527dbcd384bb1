"""`moonlake train` and `moonlake evaluate`: an encoder, or a click model."""

from __future__ import annotations

import typer

from cli.evaluate_ctr import evaluate_ctr
from cli.evaluate_encoder import evaluate_encoder
from cli.train_ctr import train_ctr
from cli.train_encoder import train_encoder

train_app = typer.Typer(no_args_is_help=True, help="Train an encoder or a click model.")
train_app.command("encoder")(train_encoder)
train_app.command("ctr")(train_ctr)

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure an encoder or click models on later rows.")
evaluate_app.command("encoder")(evaluate_encoder)
evaluate_app.command("ctr")(evaluate_ctr)
