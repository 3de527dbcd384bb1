"""Registry and online store of a feature repository, under the home that MOONLAKE_HOME names.

`feature_store.yaml` states paths relative to `<home>/feast`, because Feast knows no defaults for variables in it. So
`feast -c feature_repo apply`, our jobs and our API meet in one registry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from feast import RepoConfig
from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.repo_config import RegistryConfig

from moonlake.feast_delta.online_sqlite import DeltaSqliteOnlineStore, DeltaSqliteOnlineStoreConfig
from moonlake.settings import Settings


def home_of(repo_path: Path | None) -> Settings:
    """The settings of this process; a home within the feature repository is taken for the one beside it.

    `feast apply` changes into the repository before it reads its paths, where a relative home would lie in it.
    """
    settings = Settings.from_environment()
    home = settings.home.absolute()
    if repo_path is not None and home.is_relative_to(repo_path.absolute()):
        home = repo_path.absolute().parent / home.relative_to(repo_path.absolute())
    return settings.model_copy(update={"home": home})


class HomeRegistryStore(FileRegistryStore):
    """Feast's file registry, with its path relative to `<home>/feast`."""

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        absolute = home_of(repo_path).feast / registry_config.path
        super().__init__(registry_config.model_copy(update={"path": str(absolute)}), repo_path)

    def update_registry_proto(self, registry_proto: RegistryProto) -> None:
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        super().update_registry_proto(registry_proto)


class HomeSqliteOnlineStoreConfig(DeltaSqliteOnlineStoreConfig):
    """Configuration of `HomeSqliteOnlineStore`."""

    type: Literal["moonlake.feast_delta.home.HomeSqliteOnlineStore"] = "moonlake.feast_delta.home.HomeSqliteOnlineStore"  # type: ignore[assignment]
    path: str = "online.db"


class HomeSqliteOnlineStore(DeltaSqliteOnlineStore):
    """Our SQLite online store, with its path relative to `<home>/feast`."""

    @staticmethod
    def _get_db_path(config: RepoConfig) -> str:
        path = home_of(config.repo_path).feast / config.online_store.path
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)
