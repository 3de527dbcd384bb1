"""The `moonlake` command: its commands are those of a checkout, found beside the library or by MOONLAKE_CHECKOUT."""

from __future__ import annotations

import os
import sys

from moonlake.application import room
from moonlake.errors import MissingDependency
from moonlake.extras import naming_extras
from moonlake.settings import checkout_folder


def main() -> None:
    """Run the command line of this process; where something is not installed, say so in one line (exit code 2)."""
    checkout = checkout_folder()
    try:
        with naming_extras():
            commands = room("cli.app", checkout, asked_for="the moonlake command")
            # Processes that a command starts (Spark's workers, jobs) find the checkout as this one does.
            path = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(path)
            commands.main()
    except MissingDependency as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
