"""Job (without Spark): label rows of a window with their point-in-time features, as Parquet or Delta and a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from moonlake.logs import running
from moonlake.settings import Settings
from moonlake.training_sets.build import run
from moonlake.training_sets.spec import TrainingSetSpec, options


def main(argv: Sequence[str] | None = None) -> None:
    """Build one training set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="folder name of the training set")
    for option in options():
        action = "append" if option.repeated else "store"
        parser.add_argument(*option.flags, dest=option.field, required=option.required, action=action, help=option.help)
    stated = vars(parser.parse_args(argv))
    spec = TrainingSetSpec.from_options(stated.pop("name"), stated)
    settings = Settings.from_environment()
    with running("build_training_set", settings.log_level) as job:
        report = run(settings, spec, written_at=datetime.now(UTC))
        found = report.training_set
        print(job.report(folder=found.folder, rows=len(found), built=report.built, warnings=report.warnings))


if __name__ == "__main__":
    main()
