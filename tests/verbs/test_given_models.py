"""What a verb is given for a model: a path, bytes where it takes such, and one clear error for all else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

import edgerun
from edgerun.errors import EdgerunError
from edgerun.model import Model


@pytest.mark.parametrize("source", [b"junk" * 20, 5, None, onnx.ModelProto(doc_string="long" * 99)])
def test_what_is_no_path_is_told_by_its_kind_and_not_printed(source: Any) -> None:
    for verb in (edgerun.compile, edgerun.compress):
        with pytest.raises(EdgerunError, match="a file is given by its path") as caught:
            verb(source, target="onnxruntime")
        assert "from_bytes" in str(caught.value) and "junk" not in str(caught.value) and "long" not in str(caught.value)
    if not isinstance(source, bytes):
        with pytest.raises(EdgerunError, match="a file is given by its path"):
            edgerun.load(source)
        with pytest.raises(EdgerunError, match="a file is given by its path"):
            edgerun.load(source, device="CPU")


def test_a_model_in_memory_is_compiled_before_it_is_loaded() -> None:
    model: Any = Model.from_proto(helper.make_model(helper.make_graph([], "g", [], [])))
    with pytest.raises(EdgerunError, match=r"got: Model[\s\S]*compile"):
        edgerun.load(model)


def test_options_are_options() -> None:
    options: Any = {"threads": 1}
    with pytest.raises(EdgerunError, match="options are no Options"):
        edgerun.load("net.onnx", options=options)


def test_nodes_without_names_are_called_as_their_outputs() -> None:
    """So one can be kept in float, and a wrong name is answered with those that there are."""
    rng = np.random.default_rng(0)
    text = '<ir_version: 8, opset_import: ["" : 17]> t (float[n, 32] x) => (float[n, 16] y) { p = MatMul(x, a) '
    proto = onnx.parser.parse_model(text + "r = Relu(p) y = MatMul(r, b) }")
    for name, shape in (("a", (32, 24)), ("b", (24, 16))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    model, data = Model.from_proto(proto), {"x": rng.standard_normal((40, 32), np.float32)}
    settings: Any = {"target": "onnxruntime", "calibration": data, "placement": "rules", "preset": "fast"}
    both, one = (edgerun.compress(model, keep_float=kept, **settings) for kept in ((), ("p",)))
    assert [found.history[-1].options["integer nodes"] for found in (both, one)] == [2, 1]
    with pytest.raises(EdgerunError, match=r"unknown node 'q'[\s\S]*one of p, r, y"):
        edgerun.compress(model, keep_float=("q",), **settings)
