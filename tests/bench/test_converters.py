"""The real files of `bench.converters`: those in the cache are converted or refused as they must be; the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import converter_page, converters
from bench.converter_rows import ROWS
from edgerun import registry

CONVERTERS = {"PyTorch": "pytorch", "XGBoost": "sklearn", "scikit-learn": "sklearn"}


def test_every_row_is_pinned() -> None:
    assert len(ROWS) >= 45 and {row.framework for row in ROWS.values()} >= {"PyTorch", "Keras", "TFLite", "ONNX"}
    for row in ROWS.values():
        assert re.fullmatch("[0-9a-f]{64}", row.archive.sha256) and row.archive.version in row.archive.file


def test_the_page_is_what_the_results_say() -> None:
    results = json.loads(converters.RESULTS.read_text())
    assert converter_page.PAGE.read_text() == converter_page.page(results)
    assert set(results) <= set(ROWS)
    assert all(row["meant"] and ("refused" in row) == bool(ROWS[name].refused) for name, row in results.items())


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROWS)
def test_converted_or_refused_with_the_right_words(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    if not row.archive.path.exists():
        pytest.skip(f"{row.archive.file} is not in the cache: python -m bench.zoo")
    if package := converters.lacking(row):
        pytest.skip(f"{package} is not installed")
    used = CONVERTERS.get(row.framework, row.framework.lower())
    found = registry.converter(used)
    if reason := registry.missing(found.requires, found.extra):
        pytest.skip(reason)
    made, _ = converters.converted(row, row.source(tmp_path), tmp_path / "out.onnx")
    assert made["meant"], made
    assert ("refused" in made) == bool(row.refused)
