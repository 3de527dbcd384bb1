"""The place of Feast's state: the same for the command, which changes folder, and for the API, which does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from moonlake.feast_delta.home import HomeSqliteOnlineStore, home_of
from moonlake.feast_delta.store import feature_store
from moonlake.settings import Settings


@pytest.mark.parametrize("folder", [".", "feature_repo"])
def test_a_relative_home_stands_beside_the_repository_whether_feast_changed_into_it_or_not(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repo = tmp_path / "feature_repo"
    repo.mkdir()
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.delenv("MOONLAKE_HOME", raising=False)
    assert home_of(repo).home == tmp_path / ".moonlake"
    monkeypatch.setenv("MOONLAKE_HOME", "elsewhere")
    assert home_of(repo).lake == str(tmp_path / "elsewhere" / "lake")


def test_an_absolute_home_is_where_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path / "home"))
    assert home_of(tmp_path / "shop" / "feature_repo").feast == tmp_path / "home" / "feast"


def test_the_api_and_the_command_agree_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOONLAKE_HOME", raising=False)
    settings = Settings()
    monkeypatch.chdir(settings.checkout)
    config = feature_store(settings).config
    of_command = home_of(settings.feature_repo)
    assert config.registry.path == str(of_command.feast / "registry.db")
    assert config.offline_store.lake == of_command.lake
    assert config.online_store.path == str(of_command.feast / "online.db")


def test_settings_of_the_caller_win_over_the_environment(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOONLAKE_HOME", str(tmp_path / "other"))
    store = feature_store(settings)
    assert store.config.registry.path == str(settings.feast / "registry.db")
    assert HomeSqliteOnlineStore._get_db_path(store.config) == str(settings.feast / "online.db")
    assert not (tmp_path / "other").exists()
