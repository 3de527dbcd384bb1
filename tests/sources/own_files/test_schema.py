"""The own-files form agrees with the contracts and with its page of docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moonlake.schema.tables import TABLES
from sources.own_files.schema import KINDS, Kind

PAGE = Path(__file__).parents[3] / "docs" / "own_files.md"
MADE_BY_INGESTION = {"image_ids", "image_id", "content_id", "query_content_id", "source", "created_at"}
FOUND_BY_DECODING = {"format", "width", "height", "perceptual_hash"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_page_states_the_columns_of_every_kind(kind: Kind) -> None:
    section = PAGE.read_text(encoding="utf-8").split(f"\n### {kind.name}\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    stated = [
        (name, type_, "" if default == "**refused**" else default, meaning) for name, type_, default, meaning in rows
    ]
    assert stated == [(field.name, field.type, field.default, field.meaning) for field in kind.fields]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_fact_of_a_contract_can_be_handed_in(kind: Kind) -> None:
    facts = set(TABLES[kind.table].names) - MADE_BY_INGESTION - FOUND_BY_DECODING
    assert facts <= set(kind.names)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_column_that_the_contract_lets_be_absent_has_a_default(kind: Kind) -> None:
    contract = {column.name: column for column in TABLES[kind.table]}
    nullable = [field for field in kind.fields if field.name in contract and contract[field.name].nullable]
    assert not [field.name for field in nullable if field.required]
