"""`edgerun inspect` on models whose parts are known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun.verbs.inspect import Inspection


def save_qdq(path: Path) -> Path:
    """Conv with a per-channel int8 weight behind Q/DQ, and an If whose branches hold a Relu and a Neg."""
    branch = [
        helper.make_graph([helper.make_node(op, ["c"], [out])], op, [], [helper.make_tensor_value_info(out, 1, None)])
        for op, out in (("Relu", "r"), ("Neg", "g"))
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]
    weights = {
        "s": np.float32(0.1),
        "z": np.uint8(0),
        "w": np.ones((4, 2, 3, 3), np.int8),
        "ws": np.ones(4, np.float32),
        "flag": np.bool_(True),
    }
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
    step = {
        "name": "quantize/x",
        "version": "1",
        "options": {"k": 1},
        "before": "a",
        "after": "b",
        "data": "0123456789abcdef",
    }
    helper.set_model_props(
        model, {"edgerun.history": json.dumps([step]), "edgerun.preprocessing": json.dumps({"size": [8, 8]})}
    )
    onnx.save(model, path)
    return path


def test_every_part_is_counted(tmp_path: Path) -> None:
    path = save_qdq(tmp_path / "q.onnx")
    found = edgerun.inspect(path)
    assert isinstance(found, Inspection)
    assert found.file_bytes == path.stat().st_size and found.ir_version == 8 and found.opsets == {"ai.onnx": 17}
    assert [str(s) for s in (*found.inputs, *found.outputs)] == ["x:float32[n,2,8,8]", "y:float32[n,4,6,6]"]
    assert found.ops == {"DequantizeLinear": 2, "QuantizeLinear": 1, "Conv": 1, "If": 1, "Relu": 1, "Neg": 1}
    assert {name: (w.tensors, w.elements, w.bytes) for name, w in found.weights.items()} == {
        "int8": (1, 72, 72), "float32": (2, 5, 20), "uint8": (1, 1, 1), "bool": (1, 1, 1),
    }  # fmt: skip
    assert found.parameters == 79
    assert (found.qdq.quantize, found.qdq.dequantize, found.qdq.per_channel) == (1, 2, 1)
    assert found.qdq.compute == {"Conv": (1, 1)}
    assert found.preprocessing == {"size": [8, 8]} and found.history[0].name == "quantize/x"


def test_text_and_json(tmp_path: Path, cli: Any) -> None:
    path = save_qdq(tmp_path / "q.onnx")
    text = cli("inspect", path).out
    for part in (
        "x:float32[n,2,8,8]",
        "opset ai.onnx 17, by test",
        "Conv 1 of 1",
        "1 QuantizeLinear",
        "step 1: quantize/x",
    ):
        assert part in text
    found = json.loads(cli("inspect", path, "--json").out)
    assert found["ops"]["Conv"] == 1 and found["history"][0]["options"] == {"k": 1}


def test_external_weights_count(place: Any) -> None:
    model = onnx.load(place.a)
    onnx.save(model, place.folder / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = edgerun.inspect(place.folder / "e.onnx")
    assert found.file_bytes == sum((place.folder / name).stat().st_size for name in ("e.onnx", "w.bin"))
    assert found.weights["float32"].bytes == place.w.nbytes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nope.onnx", None, "does not exist"),
        ("empty.onnx", b"", "empty"),
        ("text.onnx", b"this is no model", "not an ONNX model"),
        ("model.recipe", b"PK\x03\x04", "cannot read"),
        ("nope.xml", None, "does not exist"),
        ("model.xml", b"<net></net>", "OpenVINO refuses the IR"),
        ("model.ort", b"nothing of the kind", "not in ONNX Runtime's format"),
    ],
)
def test_misuse(tmp_path: Path, cli: Any, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    ran = cli("inspect", tmp_path / name)
    assert ran.code == 2 and message in ran.err and ran.out == ""


def test_a_device_without_onnx_is_told_the_extra(place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    ran = cli("inspect", place.a)
    assert ran.code == 3 and "pip install 'edgerun[compress]'" in ran.err


def test_steps_are_a_table(tmp_path: Path, cli: Any) -> None:
    """What each step of a pass brought: with its interval, where it was measured, on how many, and whether it stays."""
    path = save_qdq(tmp_path / "m.onnx")
    model = onnx.load(path)
    gains = [
        {"step": "centring", "gain_db": 1.5, "interval_db": None, "n": 7, "measured": "predicted", "kept": True},
        {"step": "bias correction", "gain_db": -0.25, "interval_db": [-0.5, 0.0], "n": 16, "measured": "output",
         "kept": False},
    ]  # fmt: skip
    step = {"name": "quantize/x", "version": "1", "options": {"k": 1, "steps": gains}, "before": "a", "after": "b",
            "data": ""}  # fmt: skip
    del model.metadata_props[:]
    helper.set_model_props(model, {"edgerun.history": json.dumps([step])})
    onnx.save(model, path)
    done = cli("inspect", path)
    assert done.code == 0 and 'step 1: quantize/x (edgerun 1) {"k": 1}' in done.out
    rows = [" ".join(line.split()) for line in done.out.splitlines()[-3:]]
    assert rows == [
        "step gain 90 % measured kept",
        "centring +1.50 dB predicted, 7 values yes",
        "bias correction -0.25 dB -0.50 to +0.00 output, 16 samples no",
    ]
