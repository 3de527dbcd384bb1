from __future__ import annotations

import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from moonlake.lake.lake import Lake
from moonlake.settings import Settings
from workflows import doctor


def test_packages_that_differ_from_the_lock_are_named(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"# made\ntyper==0.0.1\n    # via moonlake\npytest=={version('pytest')}\nno-such-package==1.0\n")
    finding = doctor.check_packages(lock)
    assert finding.status == "fail"
    assert f"typer {version('typer')} (locked 0.0.1)" in finding.message
    assert "no-such-package missing (locked 1.0)" in finding.message
    assert "pytest" not in finding.message


def test_lines_of_the_lock_for_other_platforms_do_not_count(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text('pywin32==306 ; sys_platform == "no such platform"\nlz4[test]==4.0.0\n')
    assert doctor.locked_versions(lock) == {"lz4": "4.0.0"}


def test_a_port_in_use_is_a_warning() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert doctor.check_port(port, "Airflow").status == "warn"
    assert doctor.check_port(port, "Airflow").status == "ok"


def test_a_home_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = doctor.check_writable(tmp_path / "file")
    assert finding.status == "fail"
    assert "MOONLAKE_HOME" in finding.message


def test_a_home_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert doctor.check_writable(tmp_path / "a" / "b").status == "ok"
    assert not (tmp_path / "a").exists()


def test_written_tables_are_listed_with_their_version(settings: Settings, write_rows: Callable[..., None]) -> None:
    assert [finding.subject for finding in doctor.check_lake(settings)] == ["lake"]
    row = {"study": "s", "run_id": "r", "subject": "x", "metric": "m", "segment": "all", "value": 1.0}
    write_rows(settings, "study_results", [row])
    assert [(finding.subject, finding.message) for finding in doctor.check_lake(settings)] == [
        ("table study_results", "version 0")
    ]


def test_a_broken_table_fails_and_is_named(settings: Settings, lake: Lake) -> None:
    log = Path(lake.path("users")) / "_delta_log"
    log.mkdir(parents=True)
    (log / "00000000000000000000.json").write_text("no json")
    (finding,) = [finding for finding in doctor.check_lake(settings) if finding.subject == "table users"]
    assert finding.status == "fail"
