"""Fixtures that every package's tests share: one Spark session for a worker, a fresh home for each test.

And the tiers: which test may start a JVM, and which tests run in one worker when there are several (`make test`).
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import settings as hypothesis_settings

from moonlake.embeddings import releases
from moonlake.embeddings.checks import Check
from moonlake.files import exclusive
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import arrow_schema, contract
from moonlake.schema.contract import ColumnType
from moonlake.schema.tables import TIMELESS
from moonlake.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

hypothesis_settings.register_profile("long", max_examples=25 * hypothesis_settings().max_examples)
"""`make test-long`; tests that state their number of examples state it as a multiple of the profile's."""

NEEDS = {"spark": "spark", "redis_address": "redis", "redis_online": "redis"}
"""Fixture -> the marker of every test that asks for it."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
OLD_HOME = "home_of_0_1_0"
"""The group of all tests of the home that moonlake 0.1.0 made, which lies at one path."""
GROUPS = pytest.StashKey[Path]()
"""The folder in which workers leave the groups of their tests."""
FIXTURES = Path(__file__).parent / "fixtures"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Let each of several workers use one thread: together they use all cores already."""
    if config.getoption("numprocesses", None):
        config.stash[GROUPS] = Path(tempfile.mkdtemp())
        for name in ONE_THREAD:
            os.environ.setdefault(name, "1")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder of groups, if this process made one."""
    if GROUPS in config.stash:
        shutil.rmtree(config.stash[GROUPS])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every test the markers of its fixtures; let several workers start with the long groups."""
    for item in items:
        for fixture in NEEDS.keys() & getattr(item, "fixturenames", ()):
            item.add_marker(NEEDS[fixture])
    if hasattr(config, "workerinput"):
        jvm, slow = ({_group(item) for item in items if item.get_closest_marker(name)} for name in ("spark", "slow"))
        items.sort(key=lambda item: (_group(item) not in jvm, _group(item) not in slow))


def _group(item: pytest.Item) -> str:
    """The tests that run in one worker, one after the other: those of one file, or of the home of 0.1.0.

    Not all that need a JVM: they take twice as long as all others. So each worker has a Spark session of its own.
    """
    return OLD_HOME if OLD_HOME in getattr(item, "fixturenames", ()) else item.location[0]


def _starts_a_jvm(item: pytest.Item) -> bool:
    return item.get_closest_marker("spark") is not None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where to leave the groups of its tests."""
    node.workerinput["groups"] = str(node.config.stash[GROUPS])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave the groups of a worker's tests for the scheduler, which is told of no markers."""
    given = getattr(session.config, "workerinput", None)
    if given is not None:
        groups = {item.nodeid: _group(item) for item in session.items}
        Path(given["groups"], given["workerid"]).write_text(json.dumps(groups))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Whole groups for each worker, in the order of the tests (on pytest 9.2, xdist 3.8 knows no `xdist_group`)."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def schedule(self) -> None:
            one_of_the_workers = next(config.stash[GROUPS].iterdir())
            self.groups: dict[str, str] = json.loads(one_of_the_workers.read_text())
            super().schedule()

        def _split_scope(self, nodeid: str) -> str:
            return self.groups[nodeid]

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test that is not marked `spark` find no Java: it fails if it starts Spark, in any process."""
    with pytest.MonkeyPatch.context() as patch:
        if not _starts_a_jvm(item):
            patch.setenv("JAVA_HOME", "/a test that starts Spark is marked spark")
        return (yield)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The one Spark session of a worker."""
    from moonlake.spark.session import session

    home = tmp_path_factory.mktemp("spark")
    settings = Settings(home=home, spark_driver_memory="2g", spark_master="local[2]", spark_shuffle_partitions=2)
    with session(settings, "tests") as spark:
        yield spark


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a fresh home."""
    return Settings(home=tmp_path / "home", spark_shuffle_partitions=2)


@pytest.fixture(scope="module")
def home_of_0_1_0() -> Iterator[Settings]:
    """Settings with the home of `tests/fixtures`, unpacked at its path; of all processes one has it at a time."""
    facts = json.loads((FIXTURES / "home-0.1.0.json").read_text())
    home = Path(facts["home"])

    def remove() -> None:
        """Remove what was unpacked, by this run or by one that was killed. Fail if it is somebody else's folder."""
        if home.exists() and not (home / facts["marker"]).is_file():
            pytest.fail(f"{home} holds no file {facts['marker']}, so no test unpacked it: move it, it is in the way")
        shutil.rmtree(home, ignore_errors=True)

    with exclusive(home.with_name(f"{home.name}.lock")):
        remove()
        with tarfile.open(FIXTURES / "home-0.1.0.tar.xz") as archive:
            archive.extractall(home.parent, filter="data")
        yield Settings(home=home)
        remove()


@pytest.fixture
def lake(settings: Settings) -> Lake:
    """The lake of `settings`, empty."""
    return Lake(settings)


@pytest.fixture
def written_at() -> datetime:
    """The time that the tests' writes are stamped with."""
    return datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public extracts; a test that asks for it is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real public extracts are not on this machine")
    return SHARED_DATA


NEUTRAL: dict[ColumnType, Any] = {
    "string": "x",
    "bool": False,
    "int32": 1,
    "int64": 0,
    "float32": 0.0,
    "float64": 0.0,
    "timestamp": TIMELESS,
    "binary": b"x",
    "list<string>": [],
    "list<int64>": [],
    "list<float32>": [],
    "map<string,string>": {},
}


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Settings, str, Sequence[Mapping[str, Any]]], None]:
    """A function that appends rows to a lake table without Spark (unclustered).

    Columns that a row does not state are null, or a neutral value where the contract does not allow null.
    """

    def write(settings: Settings, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = contract(table).columns
        unstated = {column.name: None if column.nullable else NEUTRAL[column.type] for column in columns}
        filled = pa.Table.from_pylist([{**unstated, **row} for row in rows], schema=arrow_schema(contract(table)))
        write_deltalake(f"{settings.lake}/{table}", filled, mode="append")

    return write


@pytest.fixture(scope="session")
def release_waived() -> Callable[..., releases.Release]:
    """A function that releases as `releases.release` does, without measuring a gate: by a check that is waived."""

    def release(
        lake: Lake, use: str, space: str, *, model_id: str | None = None, written_at: datetime, **parts: Any
    ) -> releases.Release:
        begun = Check.begin(lake, releases.find(lake, space), use=use, model_id=model_id, at=written_at)
        check = begun.waived(lake, reason="a test of other things", written_at=written_at)
        return releases.release(lake, use, space, check=check, model_id=model_id, written_at=written_at, **parts)

    return release


@pytest.fixture(scope="session")
def untrained_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A function that gives the artifact of a small encoder with the weights of a seed, made once."""
    from models.encoder.config import EncoderConfig, TinyConfig
    from models.training.contrastive import TrainingConfig, train_encoder

    tiny = TinyConfig(tower="resnet10t", tower_weights="random", vocabulary=300, hidden=32, layers=1, heads=2)
    config = EncoderConfig(tiny=tiny, image_height=32, image_width=32, dimension=16)
    home = tmp_path_factory.mktemp("untrained")

    @cache
    def made(seed: int) -> Path:
        folder = home / f"seed-{seed}"
        empty = Lake(Settings(home=home / "home"))
        train_encoder(
            empty, TrainingConfig(config, steps=0, seed=seed), folder, before=datetime(2026, 1, 1, tzinfo=UTC)
        )
        return folder

    return made
