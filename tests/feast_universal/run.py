"""Feast's universal tests with our offline store, batch engine and online stores; see docs/feast_universal_tests.md.

Run with any Python 3.11 that has uv:  python tests/feast_universal/run.py [--checkout FOLDER] [tests ...]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPOSITORY = "https://github.com/feast-dev/feast"
TAG = "v0.66.0"
COMMIT = "1d5be950cf718a674cb01eaf0fd0ad6f0a4c6335"

OFFLINE = "tests/integration/offline_store"
MATERIALISATION = "tests/integration/materialization"
ONLINE = "tests/integration/online_store"
INFERENCE = "tests/integration/registration/test_universal_odfv_feature_inference.py"


@dataclass(frozen=True)
class Pass:
    """One run: what joins offline, which batch engine materialises ("delta" or "feast": its own), and which tests."""

    engine: str
    batch_engine: str
    tests: list[str]


PASSES = {
    "embedded": Pass("embedded", "delta", [OFFLINE, MATERIALISATION, ONLINE, INFERENCE]),
    "feast-batch-engine": Pass(
        "embedded", "feast", [f"{OFFLINE}/test_universal_materialization.py", MATERIALISATION, ONLINE]
    ),
    "spark": Pass("spark", "delta", [OFFLINE]),
}

FILES_LEFT_OUT = {
    "materialization/kubernetes": "cloud: runs in a Kubernetes cluster",
    "materialization/test_lambda.py": "cloud: AWS Lambda",
    "materialization/test_snowflake.py": "cloud: Snowflake",
    "offline_store/test_s3_custom_endpoint.py": "docker: Parquet files in a MinIO container",
    "online_store/test_dynamodb_versioning.py": "docker: DynamoDB",
    "online_store/test_mongodb_online_retrieval.py": "docker: MongoDB",
    "online_store/test_mongodb_vector_search.py": "docker: MongoDB",
    "online_store/test_mysql_versioning.py": "docker: MySQL",
    "online_store/test_postgres_versioning.py": "docker: PostgreSQL",
    "online_store/test_redis_versioning.py": "docker: Feast's own RedisOnlineStore, by name, in a Redis container",
    "online_store/test_remote_online_store.py": "docker: Keycloak; and it names Feast's file and SQLite stores itself",
    "online_store/test_scylladb_online_store.py": "docker: ScyllaDB",
}

TESTS_LEFT_OUT = {
    "offline_store/test_non_entity_mode.py::test_non_entity_mode_preserves_multiple_timestamps": (
        "Ray only, by Feast's own marker (its runs for other stores leave out ray_offline_stores_only): without an "
        "entity frame our store gives each key once, at end_date, as Feast's file, Spark and BigQuery stores do"
    ),
    "online_store/test_push_features_to_online_store.py::test_push_features_and_read_async_dynamodb": (
        "docker: DynamoDB"
    ),
    "online_store/test_universal_online.py::test_async_online_retrieval_with_event_timestamps_dynamo": (
        "docker: DynamoDB"
    ),
}

# Locked versions that Feast's tests cannot have: botocore wants python-dateutil 2, Feast's `ge` extra Great
# Expectations 0.x and what that pins, Feast's conftest pytest 7.
NOT_LOCKED = (
    "altair",
    "great-expectations",
    "jsonschema",
    "marshmallow",
    "pytest",
    "python-dateutil",
    "ruamel",
    "tzlocal",
)


def main() -> int:
    """Make what is missing, run the passes, print the summary; 0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*", help="paths below sdk/python, in place of those of the pass")
    parser.add_argument("--checkout", type=Path, help=f"a clone of Feast's repository that has {TAG}; default: fetched")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "moonlake_feast_universal")
    parser.add_argument("--only", choices=list(PASSES), action="append", help="a pass to run; default: all")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    python = environment(options.folder / "environment")
    tests = feast_tests(options.folder, options.checkout)
    reports = {name: run(python, tests, name, options.tests, options.folder) for name in options.only or PASSES}
    failed = [summarise(name, report) for name, report in reports.items()]
    print("\nLeft out:")
    for name, reason in {**FILES_LEFT_OUT, **TESTS_LEFT_OUT}.items():
        print(f"  {name}\n      {reason}")
    return int(any(failed))


def environment(folder: Path) -> Path:
    """The Python of an environment with moonlake[feast,redis] and what Feast's tests import."""
    python = folder / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    if not python.exists():
        subprocess.run([*uv, "venv", "--quiet", "--python", "3.11", str(folder)], check=True)
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in locked if not line.startswith(NOT_LOCKED)))
    wanted = ["-e", f"{ROOT}[feast,redis]", "-r", str(HERE / "requirements.txt"), "-c", str(constraints)]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *wanted], check=True)
    return python


def feast_tests(folder: Path, checkout: Path | None) -> Path:
    """A folder with Feast's `tests` and its pytest.ini, but not its `feast`: what is tested is the one installed."""
    if checkout is None:
        checkout = folder / "feast"
        if not checkout.exists():
            clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", TAG, REPOSITORY, str(checkout)]
            subprocess.run(clone, check=True)
    git = ["git", "-C", str(checkout)]
    found = subprocess.run([*git, "rev-parse", f"{TAG}^{{commit}}"], check=True, capture_output=True, text=True)
    if found.stdout.strip() != COMMIT:
        raise SystemExit(f"{checkout}: {TAG} is {found.stdout.strip()}, expected {COMMIT}")
    archive = [*git, "archive", TAG, "sdk/python/tests", "sdk/python/pytest.ini"]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as packed:
        subprocess.run(["tar", "x", "-C", str(folder)], stdin=packed.stdout, check=True)
    if packed.returncode:
        raise SystemExit(f"{checkout}: git archive {TAG} failed")
    return folder / "sdk" / "python"


def run(python: Path, tests: Path, name: str, paths: list[str], folder: Path) -> Path:
    """Run the tests of a pass, or those at the paths; returns the JUnit report."""
    report = folder / f"{name}.xml"
    report.unlink(missing_ok=True)
    inside = "tests/integration"
    arguments = [f"--ignore={inside}/{path}" for path in FILES_LEFT_OUT]
    arguments += [f"--deselect={inside}/{test}" for test in TESTS_LEFT_OUT]
    command = [
        str(python),
        "-m",
        "pytest",
        "--integration",
        "--timeout=900",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    variables = {
        "FEAST_IS_LOCAL_TEST": "True",
        "FULL_REPO_CONFIGS_MODULE": "delta_repo_configuration",
        "UNIVERSAL_ENGINE": PASSES[name].engine,
        "UNIVERSAL_BATCH_ENGINE": PASSES[name].batch_engine,
        "PYTHONPATH": f"{tests}{os.pathsep}{HERE}",
        "FEAST_USAGE": "False",
    }
    print(f"Feast {TAG} ({COMMIT}), pass: {name}", flush=True)
    subprocess.run(
        [*command, *arguments, *(paths or PASSES[name].tests)], cwd=tests, env={**os.environ, **variables}, check=False
    )
    return report


def summarise(name: str, report: Path) -> int:
    """Print what passed, failed and was skipped; returns how many failed, at least 1 when there is no report."""
    if not report.exists():
        print(f"\nPass {name}: no report")
        return 1
    cases = list(ElementTree.parse(report).iter("testcase"))
    names = {id(case): f"{case.get('classname')}::{str(case.get('name')).split('[')[0]}" for case in cases}
    skipped = Counter((names[id(case)], skip.get("message")) for case in cases for skip in case.findall("skipped"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    passed = Counter(str(case.get("classname")) for case in cases if len(case.findall("*")) == len(_output(case)))
    print(f"\nPass {name}: {passed.total()} passed, {len(failed)} failed, {skipped.total()} skipped")
    for file, number in passed.items():
        print(f"  {number:3} passed   {file}")
    for case in failed:
        print(f"  FAILED       {case.get('classname')}::{case.get('name')}")
    for (test, why), number in skipped.items():
        for_others = str(why).startswith("got empty parameter set")
        print(f"  {number:3} skipped  {test}: {'Feast marks it for other stores only' if for_others else why}")
    return len(failed) + (not cases)


def _output(case: ElementTree.Element) -> list[ElementTree.Element]:
    return case.findall("system-out") + case.findall("system-err") + case.findall("properties")


if __name__ == "__main__":
    sys.exit(main())
