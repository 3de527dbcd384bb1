import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from moonlake.files import atomic_write, exclusive, publish_folder

PROCESSES = multiprocessing.get_context("spawn")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_takes_its_place_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    for text in ("old", "new"):
        with atomic_write(path) as file:
            assert (file.parent, file.suffix) == (tmp_path, ".json")
            file.write_text(text)
        assert path.read_text() == text
    assert _names(tmp_path) == ["figures.json"]


def test_a_reader_has_the_old_file_until_the_new_one_is_whole_and_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_write(path) as file:
            file.write_text("ne")
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["figures.json"]


def test_a_file_is_as_readable_as_any_that_the_user_writes(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "plain-folder").mkdir()
    with atomic_write(tmp_path / "atomic") as file:
        file.write_text("")
    with publish_folder(tmp_path / "published"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "published").stat().st_mode == (tmp_path / "plain-folder").stat().st_mode


def test_of_two_writers_at_once_the_last_one_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    with atomic_write(path) as first:
        first.write_text("first, and longer")
        with atomic_write(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first, and longer"
    assert _names(tmp_path) == ["figures.json"]


def test_a_published_folder_takes_the_place_of_the_old_one_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with publish_folder(folder) as filling:
        (filling / "weights").write_text("1")
        assert not folder.exists()
    with publish_folder(folder) as filling:
        (filling / "heads").write_text("2")
        assert _names(folder) == ["weights"]
    assert _names(folder) == ["heads"]

    def fail_half_way() -> None:
        with publish_folder(folder) as filling:
            (filling / "torn").write_text("3")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert _names(folder) == ["heads"]
    assert _names(folder.parent) == ["model"]


def _hang_inside(folder: Path, inside: Event) -> None:
    with publish_folder(folder / "model") as filling, atomic_write(folder / "figures.json") as file:
        (filling / "weights").write_text("1")
        file.write_text("1")
        with exclusive(folder / "lock"):
            inside.set()
            signal.pause()


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_one_that_lives(tmp_path: Path) -> None:
    inside = PROCESSES.Event()
    other = PROCESSES.Process(target=_hang_inside, args=(tmp_path, inside))
    other.start()
    try:
        assert inside.wait(60)
        with publish_folder(tmp_path / "model"), atomic_write(tmp_path / "figures.json"):
            pass
        with exclusive(tmp_path / "lock", wait=False) as alone:
            assert not alone
        assert len(_names(tmp_path)) == 5  # model, figures.json and lock, and the two of the process that lives
    finally:
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    (tmp_path / ".00000000-model-2").mkdir()  # of another folder
    with publish_folder(tmp_path / "model"), atomic_write(tmp_path / "figures.json"):
        pass
    assert _names(tmp_path) == [".00000000-model-2", "figures.json", "lock", "model"]
    with exclusive(tmp_path / "lock", wait=False) as alone:
        assert alone


def test_a_name_that_a_pattern_would_read_otherwise_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".00000000-a").mkdir()
    with publish_folder(tmp_path / "[ab]"):
        pass
    assert _names(tmp_path) == [".00000000-a", "[ab]"]


def _add_one(folder: Path, times: int) -> None:
    for _ in range(times):
        with exclusive(folder / "lock") as alone:
            assert alone
            count = folder / "count"
            count.write_text(str(int(count.read_text()) + 1))


def test_one_process_at_a_time_is_in_a_block(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    workers = [PROCESSES.Process(target=_add_one, args=(tmp_path, 200)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "600"
