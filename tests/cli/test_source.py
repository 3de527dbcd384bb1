"""`moonlake source` says where the source lies and what became of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.source import source_app
from moonlake.errors import InputError

RUN = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh home for every command."""
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_preset_is_staged_and_labelled_simulated(home: Path) -> None:
    result = RUN.invoke(source_app, ["marketplace", "tiny"], catch_exceptions=False)
    assert f"{home / 'staging' / 'tiny'} (simulated)" in result.output.replace("\n", "")
    assert (home / "staging" / "tiny" / "source.json").exists()


def test_arrivals_are_staged(home: Path) -> None:
    RUN.invoke(source_app, ["arrivals", "tiny", "--count", "2"], catch_exceptions=False)
    assert (home / "staging" / "tiny-arrivals-1" / "products").is_dir()


def test_own_files_report_what_was_refused_and_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "products.csv").write_text("product_id,price_cents,colour\n1,5,red\n2,cheap,red\n3,6,red\n")
    output = RUN.invoke(source_app, ["files", str(folder)], catch_exceptions=False).output
    assert "refused 1" in output
    assert "ignored in products: colour" in output


def test_a_behaviour_log_reports_what_was_taken_for_null_and_ignored(tmp_path: Path) -> None:
    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
    row = "2019-10-01 00:00:00 UTC,view,1,2,,apple,0.00,3,s\n"
    (tmp_path / "2019-Oct.csv").write_text(header + row)
    output = RUN.invoke(source_app, ["rees46", str(tmp_path), "--negatives", "2"], catch_exceptions=False).output
    assert "rees46 (simulated)" in output.replace("\n", "")
    assert "taken for null: category_empty 1" in output
    assert "taken for null: price_zero 1" in output
    assert "ignored in behaviors: user_session" in output


def test_a_wrong_path_is_an_error_of_the_tree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        RUN.invoke(source_app, ["files", str(tmp_path / "nowhere")], catch_exceptions=False)


def test_json_has_the_folder_and_all_that_is_known_of_the_source(home: Path, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product_id,price_cents,colour\n1,5,red\n2,cheap,red\n3,6,red\n")
    result = RUN.invoke(source_app, ["files", str(tmp_path), "--name", "mine", "--json"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["folder"] == str(home / "staging" / "mine")
    assert (report["staged"]["products"], report["refused"]["products"]) == (2, 1)
    assert report["ignored"]["products"] == ["colour"]
