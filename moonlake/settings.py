"""Settings: every value that varies by environment, and the only reader of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from moonlake.errors import SettingsError
from moonlake.logs import Level
from moonlake.names import require_name

PREFIX = "MOONLAKE_"


def checkout_folder() -> Path:
    """The folder that MOONLAKE_CHECKOUT names, or the one that the library lies in; other variables may be wrong."""
    return Path(os.environ.get(PREFIX + "CHECKOUT") or Path(__file__).resolve().parents[1]).expanduser().absolute()


class Settings(BaseSettings):
    """One environment. Build it once in a `main` with `Settings.from_environment()` and hand it down.

    Every field is read from `MOONLAKE_<FIELD>`; a `MOONLAKE_` variable that names no field is an error.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(
        default=Path(".moonlake"), validate_default=True, description="folder of everything that moonlake writes"
    )
    checkout: Path = Field(
        default_factory=checkout_folder,
        description="checkout with the commands and models; default: the folder of the library",
    )
    feature_repo: Path = Field(
        default_factory=lambda others: others["checkout"] / "feature_repo",
        validate_default=True,
        description="folder of the feature definitions; default <checkout>/feature_repo",
    )
    lake_uri: str | None = Field(default=None, description="where the Delta tables lie; default <home>/lake")
    spark_master: str = Field(default="local[*]", description="Spark master")
    spark_driver_memory: str = Field(default="3g", description="memory of the Spark driver (all of Spark when local)")
    spark_shuffle_partitions: int = Field(default=4, ge=1, description="partitions of a shuffle")
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, description="threads of one process")
    log_level: Level = Field(default="info", description="log lines from this level on: debug, info, warning, error")

    @classmethod
    def from_environment(cls, **overrides: object) -> Settings:
        """The settings of this process: the environment, and over it what the caller names.

        Raises: SettingsError: an unknown MOONLAKE_ variable or override, or a value that does not fit its field.
        """
        known = {PREFIX + name.upper() for name in cls.model_fields}
        if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
            raise SettingsError(f"unknown variables {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        try:
            return cls(**overrides)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            name = PREFIX + ".".join(str(part) for part in first["loc"]).upper()
            raise SettingsError(f"{name}: {first['msg']} (found {first['input']!r})") from None

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a process that is started by command."""
        values = self.model_dump(exclude_none=True)
        return {PREFIX + name.upper(): str(value) for name, value in values.items()}

    @field_validator("home", "checkout", "feature_repo")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        """Paths below it are written into tables, and read by processes that were started elsewhere."""
        return folder.expanduser().absolute()

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, level: object) -> object:
        return level.lower() if isinstance(level, str) else level

    @property
    def lake(self) -> str:
        """Root of the Delta tables: an absolute path or an object-store URI."""
        return self.lake_uri or str(self.home / "lake")

    @property
    def staging(self) -> Path:
        """The folder where sources lay down files in the own-files form before ingestion."""
        return self.home / "staging"

    @property
    def incoming(self) -> Path:
        """The folder where writers drop files of products that are to be taken in at once."""
        return self.home / "incoming"

    @property
    def truth(self) -> Path:
        """Hidden truth of simulations; read by studies and tests only."""
        return self.home / "truth"

    @property
    def artifacts(self) -> Path:
        """Encoders and CTR models."""
        return self.home / "artifacts"

    @property
    def training_sets(self) -> Path:
        """Assembled training sets."""
        return self.home / "training_sets"

    @property
    def snapshots(self) -> Path:
        """Representation snapshots."""
        return self.home / "snapshots"

    @property
    def feast(self) -> Path:
        """Feast's registry and SQLite online store."""
        return self.home / "feast"

    @property
    def backfills(self) -> Path:
        """Vectors of spaces that are being filled, and are not in the lake yet."""
        return self.home / "backfills"

    @property
    def streams(self) -> Path:
        """Checkpoints of streams, and the lock of the one that takes products in."""
        return self.home / "streams"

    @property
    def erasures(self) -> Path:
        """Plans of erasures that are not done yet."""
        return self.home / "erasures"

    @property
    def locks(self) -> Path:
        """Locks of tables that several processes write."""
        return self.home / "locks"

    @property
    def metrics(self) -> Path:
        """Figures of running jobs, as Prometheus reads them."""
        return self.home / "metrics"

    @property
    def logs(self) -> Path:
        """Logs of Spark."""
        return self.home / "logs"

    @property
    def quality(self) -> Path:
        """Suites and results of Great Expectations, and the Data Docs that show them."""
        return self.home / "quality"

    @property
    def warehouse(self) -> Path:
        """Spark's warehouse, which stays empty."""
        return self.home / "warehouse"

    @property
    def airflow(self) -> Path:
        """Airflow's own home, where the demo starts it."""
        return self.home / "airflow"

    @property
    def demo(self) -> Path:
        """The steps of the demo that are done."""
        return self.home / "demo"

    @property
    def report(self) -> Path:
        """The demo's report, a page."""
        return self.home / "report.html"

    def staged(self, source: str) -> Path:
        """The folder that a source of that name is staged in. Raise InputError unless the name is a plain one."""
        return self.staging / require_name("source", source)

    def truth_of(self, source: str) -> Path:
        """The folder of a simulated source's hidden truth. Raise InputError unless the name is a plain one."""
        return self.truth / require_name("source", source)

    def run(self, name: str) -> Path:
        """The folder of a training under way, with its checkpoints."""
        return self.artifacts / "runs" / name

    def snapshot(self, space_id: str) -> Path:
        """The folder of an embedding space's snapshot."""
        return self.snapshots / space_id

    def training_set(self, name: str) -> Path:
        """The folder of the training set of that name. Raise InputError unless the name is a plain one."""
        return self.training_sets / require_name("training set", name)

    def encoder(self, name: str) -> Path:
        """The folder of the encoder of that name. Raise InputError unless the name is a plain one."""
        return self.artifacts / f"encoder-{require_name('encoder', name)}"

    def ctr_model(self, name: str) -> Path:
        """The folder of the click model of that name. Raise InputError unless the name is a plain one."""
        return self.artifacts / f"ctr-{require_name('model', name)}"
