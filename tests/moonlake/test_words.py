from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlake.errors import InputError
from moonlake.words import json_by_name, numbers_by_name, values_by_name

NAMES = st.text(st.characters(exclude_characters="="), min_size=1, max_size=5)


@given(st.dictionaries(NAMES, st.text(min_size=1, max_size=5)))
def test_every_value_comes_back_under_its_name(values: dict[str, str]) -> None:
    found = values_by_name([f"{name}={value}" for name, value in values.items()], "--set")
    assert list(found.items()) == list(values.items())


@pytest.mark.parametrize(
    ("read", "words", "message"),
    [
        (values_by_name, ["user_id"], "join keys 'user_id': expected NAME=VALUE with a name of product_id, user_id"),
        (values_by_name, ["user_id="], "join keys 'user_id=': expected NAME=VALUE with a name of"),
        (values_by_name, ["=u1"], "join keys '=u1': expected NAME=VALUE with a name of"),
        (values_by_name, ["shop=s"], "there is no 'shop'; expected NAME=VALUE with a name of product_id, user_id"),
        (json_by_name, ["user_id=[1"], r"join keys user_id=\[1: '\[1' is not JSON"),
    ],
)
def test_a_word_that_cannot_be_meant_is_named(read: Callable[..., Any], words: list[str], message: str) -> None:
    more = {"plain_words": False} if read is json_by_name else {}
    with pytest.raises(InputError, match=message):
        read(words, "join keys", names={"user_id", "product_id"}, **more)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["users"], "'users': expected NAME=NUMBER"),
        (["users=-1"], "'users=-1': expected NAME=NUMBER"),
    ],
)
def test_a_number_that_cannot_be_meant_is_named(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        numbers_by_name(words)


def test_the_last_value_of_a_name_holds() -> None:
    assert json_by_name(["hidden=[16]", "hidden=[4]"], "--set") == {"hidden": [4]}
    assert numbers_by_name(["1", "users=1", "users=2", "2"]) == {"": 2, "users": 2}
