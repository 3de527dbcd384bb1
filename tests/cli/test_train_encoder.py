from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.train_encoder import _size
from moonlake.errors import InputError

TINY = """
steps = 0
[encoder]
image_height = 32
image_width = 32
dimension = 16
[encoder.tiny]
tower = "resnet10t"
tower_weights = "random"
vocabulary = 300
hidden = 32
layers = 1
heads = 2
"""


def test_a_name_for_weights_that_are_a_space_already_works_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path))
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    printed = [
        run("train", "encoder", name, "--before", "2026-01-01T00:00Z", "--config", str(file))
        for name in ("demo", "next")
    ]
    assert "NOTE" not in printed[0]
    assert "NOTE: the same weights are the space demo already; next is a further name of it" in printed[1]
    assert "also called next" in printed[1]
    again = json.loads(
        run("train", "encoder", "next", "--before", "2026-01-01T00:00Z", "--config", str(file), "--json")
    )
    assert (again["name"], again["space_names"]) == ("next", ["demo", "next"])
    assert run("space", "list").splitlines()[1].startswith("demo, next  ")
    shown = run("space", "show", "next")
    assert "name: demo" in shown
    assert "aliases: next" in shown


def test_an_image_size_is_two_numbers() -> None:
    assert _size("96x72") == {"image_height": 96, "image_width": 72}
    assert set(_size(None).values()) == {None}
    with pytest.raises(InputError, match="such as 64x64"):
        _size("96")
