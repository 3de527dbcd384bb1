"""Job (without Spark): register the feature repository and bring the online store up to a moment, by Feast."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from moonlake.feast_delta.materialize import run
from moonlake.logs import running
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment


def main(argv: Sequence[str] | None = None) -> None:
    """Materialise feature views up to `--end`, by default now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("views", nargs="*", help="feature views; default: all")
    parser.add_argument("--end", type=parse_moment, help="moment up to which facts are served, with its time zone")
    arguments = parser.parse_args(argv)
    end = arguments.end or datetime.now(UTC)
    settings = Settings.from_environment()
    with running("materialize_features", settings.log_level) as job:
        print(job.report(views=run(settings, end, arguments.views or None)))


if __name__ == "__main__":
    main()
