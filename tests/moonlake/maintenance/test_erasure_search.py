import json
from datetime import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlake.lake.lake import Lake
from moonlake.maintenance.erasure_search import Search, search_home
from moonlake.settings import Settings

IDS = ("plain-7", "Müller-7", 'a"b-7', "back\\slash-7", "日本7", "line\nbreak-7")


def named(search: Search, text: str) -> bool:
    (found,) = search.rows_naming("value", pa.array([text]))
    return bool(found)


@pytest.mark.parametrize("user", IDS)
def test_an_id_in_a_refused_record_is_found_however_it_is_spelled(
    user: str, lake: Lake, settings: Settings, written_at: datetime
) -> None:
    lake.keep_rejects("behaviors", [("a_rule", {"user_id": user})], source="test", written_at=written_at)
    search = Search({"user": frozenset([user])})
    assert search.rows_naming("value", lake.read("rejects")["value"]).tolist() == [True]
    assert any(one.found for one in search_home(settings, search.names) if one.store == "lake/rejects")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.booleans(), st.booleans())
def test_an_id_is_found_in_json_and_in_json_inside_json(user: str, ascii_only: bool, cut: bool) -> None:
    search = Search({"user": frozenset([user])})
    record = json.dumps({"user_id": user, "action": "view"}, ensure_ascii=ascii_only)
    inside = json.dumps({"line": record}, ensure_ascii=ascii_only)
    for text in (record, inside):
        assert named(search, text[:-4] if cut else text)  # what is cut off is no JSON any more
        assert not named(Search({"user": frozenset([f"{user}!"])}), text)


def test_escapes_are_found_in_capitals_too() -> None:
    assert named(Search({"user": frozenset(["Müller"])}), r'{"user_id": "M\u00FCller"}')


def test_a_short_word_is_no_id() -> None:
    assert not named(Search({"user": frozenset(["7"])}), '{"title": "7 mugs", "price": 7}')
