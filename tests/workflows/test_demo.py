"""A demo that cannot be is refused before anything is staged; tests/cli/test_demo.py runs one."""

from __future__ import annotations

import pytest

from moonlake.errors import InputError
from moonlake.settings import Settings
from sources.registry import WITHOUT_PICTURES, SourceName
from workflows.demo import run_demo


@pytest.mark.parametrize("source", WITHOUT_PICTURES)
def test_a_source_without_pictures_is_refused(source: SourceName, settings: Settings) -> None:
    with pytest.raises(InputError, match=f"{source.value} has no pictures to learn from"):
        run_demo(settings, source)
    assert not settings.home.exists()
