from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = (
    "benchmarks", "cli", "dags", "feature_repo", "models", "moonlake", "moonlake/feast_delta", "serving", "sources",
    "spark_jobs", "spark_jobs/arrivals", "spark_jobs/pairs", "studies",
)  # fmt: skip


def test_the_file_map_names_every_file_of_every_room_and_no_other() -> None:
    mapped: dict[str, set[str]] = {}
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("**") and line.endswith("/**"):
            room = line.strip("*/")
            mapped[room] = set()
        elif line.startswith("| `") and mapped:
            mapped[room].add(line.split("`")[1])
    there = {room: {path.name for path in (ROOT / room).glob("*.py") if path.name != "__init__.py"} for room in ROOMS}
    assert mapped == there
