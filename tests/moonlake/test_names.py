from __future__ import annotations

import re

import pytest

from moonlake.errors import InputError
from moonlake.names import LONGEST, PATTERN, require_name


@pytest.mark.parametrize("name", ["a", "january-2026", "v1.2_final", "_x", "0", "a" * LONGEST, "été", "双11"])
def test_a_plain_name_is_taken_as_it_is(name: str) -> None:
    assert require_name("source", name) == name
    assert re.search(PATTERN, name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/a", ".hidden", "-x", "a b", "a\\b", "a\n", "a\0", "$(x)", "a" * 65]
)
def test_any_other_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InputError, match=r"source name '.*': expected letters, digits") as refused:
        require_name("source", name)
    assert len(str(refused.value)) < 250
    assert "\n" not in str(refused.value)
