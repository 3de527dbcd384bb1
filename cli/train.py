"""`moonlake train`: an encoder, or a click model."""

from __future__ import annotations

import typer

from cli.train_ctr import train_ctr
from cli.train_encoder import train_encoder

train_app = typer.Typer(no_args_is_help=True, help="Train an encoder or a click model.")
train_app.command("encoder")(train_encoder)
train_app.command("ctr")(train_ctr)
