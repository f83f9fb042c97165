"""The page from plain numbers: whole, escaped, and without the network."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from edgerun.report.why_wrong import Bar, Page, Tensor, render

pytest.importorskip("plotly")
pytest.importorskip("jinja2")


def _page(**changes: object) -> str:
    draw = np.random.default_rng(0)
    tensor = Tensor("layer: t", "clipping", draw.standard_normal(500), -0.5, 0.5, -np.ones(3), np.ones(3))
    bars = [Bar("a <b>", (3.0, 2.0, 4.0), (2.5, 2.0, 3.0)), Bar("c", (1.0, -math.inf, math.inf), None)]
    values = {"title": "x < y", "facts": ["n = 3"], "headers": ["layer"], "rows": [["a <b>"]], "explained": ["because"],
              "ending": ["no fix pays"], "bars": bars, "tensors": [tensor]}  # fmt: skip
    return render(Page(**{**values, **changes}))  # type: ignore[arg-type]


def test_the_page_is_whole_and_escaped() -> None:
    text = _page()
    body = text.split("</script>", 1)[1]
    assert "<title>x &lt; y</title>" in text and "<td>a &lt;b&gt;</td>" in body
    assert "because" in body and "no fix pays" in body and body.count("Plotly.newPlot") == 3


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = _page()
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", text.split("<body>", 1)[1])
    assert text.split("<script>", 1)[0].count("http") == 0


def test_a_range_far_wider_than_the_data_keeps_the_data_in_view() -> None:
    wide = Tensor("t", "dead or constant calibration", np.linspace(0, 1, 50), 0.0, 1e4, np.zeros(2), np.ones(2))
    found = re.search(r'"range":\[([-0-9.e]+),([-0-9.e]+)\]', _page(tensors=[wide]).split("<body>", 1)[1])
    assert found is not None and float(found[2]) < 10


def test_without_findings() -> None:
    text = _page(bars=[], tensors=[], rows=[], ending=["a repair"])
    assert "a repair" in text and "Plotly.newPlot" not in text.split("<body>", 1)[1]
