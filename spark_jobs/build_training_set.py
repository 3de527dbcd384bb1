"""Job (without Spark): label rows of a window with their point-in-time features, as Parquet or Delta and a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from moonlake.training_sets.build import run
from moonlake.training_sets.spec import Declaration, numbers_by_name


def main(argv: Sequence[str] | None = None) -> None:
    """Build one training set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="folder name of the training set")
    parser.add_argument("--start", required=True, type=parse_moment, help="first moment of the window, with time zone")
    parser.add_argument("--end", required=True, type=parse_moment, help="moment behind the window")
    parser.add_argument("--settled-by", type=parse_moment, help="labels settled later stay out; default: --end")
    parser.add_argument("--feature-service", default="ctr_ranking_v1")
    parser.add_argument("--label-table", default="impressions", help="lake table with an event time")
    parser.add_argument("--version", action="append", default=[], help="TABLE=NUMBER; the others at their latest")
    parser.add_argument("--sequence-length", action="append", default=[], help="NUMBER, or VIEW=NUMBER")
    parser.add_argument("--known-by", default="event", choices=("event", "written"))
    parser.add_argument("--format", default="parquet", choices=("parquet", "delta"))
    parser.add_argument("--sequences", default="inline", choices=("inline", "pointers"))
    parser.add_argument("--space-id", help="embedding space that the content ids are to be read in")
    asked = vars(parser.parse_args(argv))
    versions, lengths = numbers_by_name(asked.pop("version")), numbers_by_name(asked.pop("sequence_length"))
    declared = Declaration(**asked, versions=versions).with_lengths(lengths)
    report = run(Settings.from_environment(), declared, written_at=datetime.now(UTC))
    state = "built" if report.built else "unchanged"
    print(f"{report.training_set.folder}: {len(report.training_set)} rows, {state}")


if __name__ == "__main__":
    main()
