"""The real files of `bench.converters`: those in the cache are converted or refused as they must be; the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402

from bench import converter_page, converters, cpu_ratio  # noqa: E402
from bench.converter_rows import ROWS  # noqa: E402
from edgerun import registry  # noqa: E402

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


def test_two_graphs_are_timed_in_turns_or_the_reason_is_told() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    doors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", doors[:1], doors[1:])
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    found = cpu_ratio.measured(model, model, {"x": np.ones(4, np.float32)})
    assert found["n"] == cpu_ratio.SESSIONS * cpu_ratio.ROUNDS and 0 < found["low"] <= found["value"] <= found["high"]
    assert "Got invalid dimensions" in cpu_ratio.measured(model, model, {"x": np.ones(5, np.float32)})["failed"]


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
