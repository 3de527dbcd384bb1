from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from models.evaluation.bootstrap import DRAWS
from models.evaluation.exchange_rate import compare
from workflows.exchange_rate_plot import HEIGHT, LEFT, TOP, WIDTH, Axis, draw

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*values: float, error: float = 0.005) -> np.ndarray:
    """Figures of spaces, and draws around them."""
    figures = np.array([values])
    return np.concatenate([figures, figures + error * np.random.default_rng(0).normal(size=(DRAWS, len(values)))])


def test_every_space_stands_in_every_panel_on_which_it_is_defined_and_names_are_escaped() -> None:
    metrics = {"good": drawn(0.1, 0.2, 0.3), "odd": drawn(0.3, np.nan, 0.4), "none": drawn(*[np.nan] * 3)}
    found = compare(["a<b", "two", "three"], metrics, drawn(0.60, 0.63, 0.64), runs=[2] * 3)
    picture = draw(found, simulated=True)
    page = ET.fromstring(picture)
    texts = [one.text for one in page.iter(f"{SVG}text")]
    assert [texts.count(name) for name in ("a<b", "two", "three", "good", "odd", "none")] == [2, 1, 2, 1, 1, 0]
    assert "no slope: undefined on two" in texts
    assert any("simulated" in str(text) for text in texts)
    for circle in page.iter(f"{SVG}circle"):
        assert LEFT < float(circle.attrib["cx"]) < LEFT + WIDTH
        assert TOP < float(circle.attrib["cy"]) < TOP + HEIGHT
    assert picture.count("stroke-dasharray") == 1


def test_an_axis_puts_its_ends_on_its_ends() -> None:
    axis = Axis(0.2, 0.4, 210, 10)
    assert [axis.at(value) for value in (0.2, 0.4, 0.3)] == pytest.approx([210, 10, 110])
    assert [words for _, words in axis.ticks()] == ["0.220", "0.300", "0.380"]
