"""The library and the application as one archive, for the workers of a Spark cluster: spark-submit --py-files ARCHIVE.

The wheel holds the library alone, and Spark takes no wheel. Files lie in the archive by name, with the times of the
oldest date that a zip can state, so that the same tree gives the same bytes.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from moonlake.settings import checkout_folder
from moonlake.version import __version__

ROOMS = ("cli", "models", "moonlake", "serving", "sources", "spark_jobs", "workflows")


def write_archive(checkout: Path, folder: Path) -> Path:
    """The archive of the checkout's rooms, written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"moonlake-{__version__}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in sorted(source for room in ROOMS for source in (checkout / room).rglob("*.py")):
            name = zipfile.ZipInfo(source.relative_to(checkout).as_posix())
            archive.writestr(name, source.read_bytes(), zipfile.ZIP_DEFLATED)
    return path


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else checkout_folder() / "dist"
    print(write_archive(checkout_folder(), folder))
