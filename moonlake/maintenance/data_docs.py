"""Great Expectations on what was measured and on rows of the lake, and its Data Docs for people.

<home>/quality/gx/                                           suites, results, checkpoints
<home>/quality/gx/uncommitted/data_docs/local_site/index.html   the pages

The library's pages fetch styles and scripts from other hosts when they are opened, and a logo with the id of the
project in its address. All of that is taken out: a page is one file that can be read anywhere.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moonlake.embeddings.checks import Check
from moonlake.embeddings.gates import Gate
from moonlake.lake.lake import Lake
from moonlake.schema.arrow import contract
from moonlake.schema.row_rules import broken_rules, expectation_suite
from moonlake.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuite

SAMPLE_ROWS = 2_000
"""Rows of a table that are held against its contract, at most."""
SAMPLE_FILES = 32
"""Files of a table that a sample is drawn from, at most."""

FETCHED = re.compile(
    r'<script[^>]*\ssrc="https?:[^>]*>\s*</script>|<link[^>]*\shref="https?:[^>]*>|<img[^>]*\ssrc="https?:[^>]*>'
)
STYLE = "<style>body{font-family:sans-serif;margin:1em} td,th{border:1px solid #ccc;padding:.3em}</style>"


def pages(settings: Settings) -> Path:
    """The first page of the Data Docs."""
    return settings.quality / "gx" / "uncommitted" / "data_docs" / "local_site" / "index.html"


def sample_rows(lake: Lake, name: str, count: int, space_id: str | None = None) -> pa.Table:
    """`count` rows of a table at most, an equal part of each of some files spread over it.

    Args: space_id: rows of this space alone.
    """
    table = contract(name)
    if not lake.exists(name):
        return lake.read(name)
    where = None if space_id is None else pc.field("space_id") == space_id
    files = list(lake.dataset(name).get_fragments(filter=where))
    chosen = [files[at] for at in np.unique(np.linspace(0, len(files) - 1, min(len(files), SAMPLE_FILES)).astype(int))]
    schema = lake.dataset(name).schema
    parts, wanted = [], count
    for left, file in zip(range(len(chosen), 0, -1), chosen, strict=True):
        scanner = file.scanner(schema=schema, columns=list(table.names), filter=where, batch_size=1024)
        part = scanner.head(-(-wanted // left))
        parts.append(part)
        wanted -= len(part)
    return pa.concat_tables(parts) if parts else lake.read(name).slice(0, 0)


def check_rows(settings: Settings, name: str, rows: pa.Table, *, called: str | None = None) -> dict[str, int]:
    """The rules of a table's contract that rows break, with how many rows break each; entered in the Data Docs.

    Expectations of the library cannot read inside lists and maps; the row rules do that.

    Args: called: what it is called in the Data Docs; default: the table's name.
    """
    table = contract(name)
    broken: dict[str, int] = {}
    for rule in broken_rules(table, rows):
        if rule is not None:
            broken[rule] = broken.get(rule, 0) + 1
    suite = expectation_suite(table)
    suite.name = called or name
    for expectation, unexpected in _validate(settings, suite, rows.to_pandas()):
        rule = (expectation.meta or {}).get("rule", expectation.type)
        broken.setdefault(rule, unexpected)
    return broken


def check_gates(settings: Settings, check: Check) -> None:
    """Enter the gates of a check in the Data Docs: a suite of the space, one expectation for each gate that applies."""
    import pandas as pd

    suite = _suite(check)
    values = {gate.name: gate.value for gate in check.gates if gate.applicable}
    found = _validate(settings, suite, pd.DataFrame([values]).astype(float))
    failed = {str(expectation.kwargs["column"]) for expectation, _ in found}
    if failed != {gate.name for gate in check.failed}:
        raise AssertionError(f"{check.space}: Great Expectations finds {sorted(failed)}, the gates {check.failed}")


def _suite(check: Check) -> ExpectationSuite:
    gx = _library()
    expectations = [_expectation(gate) for gate in check.gates if gate.applicable]
    left_out = {gate.name: gate.detail for gate in check.gates if not gate.applicable}
    return gx.ExpectationSuite(
        name=f"space_{check.space.name}",
        expectations=expectations,
        meta={"space_id": check.space.space_id, "check_id": check.check_id, "does_not_apply": left_out},
    )


def _expectation(gate: Gate) -> Any:
    import great_expectations.expectations as gxe

    common = {"column": gate.name, "notes": gate.detail, "meta": {"gate": gate.name, "detail": gate.detail}}
    if gate.value is None or (gate.minimum is None and gate.maximum is None):  # a null is not compared with limits
        return gxe.ExpectColumnValuesToNotBeNull(**common)
    return gxe.ExpectColumnValuesToBeBetween(min_value=gate.minimum, max_value=gate.maximum, **common)


def _validate(settings: Settings, suite: ExpectationSuite, frame: pd.DataFrame) -> list[tuple[Any, int]]:
    """The expectations that a frame does not meet, with how many values are wrong; the Data Docs show all of them."""
    gx = _library()
    from great_expectations.checkpoint import UpdateDataDocsAction

    folder = settings.quality
    folder.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="file", project_root_dir=folder)
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_or_update_pandas("lake")
    rows = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("rows")
    kept = context.suites.add_or_update(suite)
    definition = context.validation_definitions.add_or_update(
        gx.ValidationDefinition(name=suite.name, data=rows, suite=kept)
    )
    checkpoint = context.checkpoints.add_or_update(
        gx.Checkpoint(name=suite.name, validation_definitions=[definition], actions=[UpdateDataDocsAction(name="docs")])
    )
    began = time.time()
    (result,) = checkpoint.run(batch_parameters={"dataframe": frame}).run_results.values()
    for page in pages(settings).parent.rglob("*.html"):
        if page.stat().st_mtime >= began - 1:
            _make_whole(page)
    return [
        (one.expectation_config, int((one.result or {}).get("unexpected_count", 1)))
        for one in result.results
        if not one.success
    ]


def _make_whole(page: Path) -> None:
    """Take out of a page what a browser would fetch from other hosts."""
    text, count = FETCHED.subn("", page.read_text(encoding="utf-8"))
    if count:
        page.write_text(text.replace("</head>", f"{STYLE}</head>", 1), encoding="utf-8")


def _library() -> Any:
    """Great Expectations, which is told before its import to send nothing anywhere."""
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx

    return gx
