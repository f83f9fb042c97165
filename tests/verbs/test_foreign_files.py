"""ONNX files as other tools write them, of which ONNX Runtime makes nothing special."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest

import edgerun
from edgerun import registry

RUNNERS = [n for n in ("onnxruntime", "openvino") if not registry.target(n, usable=False).available()]
ONE = edgerun.Options(threads=1)
Cli = Callable[..., Any]


def saved(path: Path, text: str, imports: str = '"" : 17') -> Path:
    onnx.save(onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> {text}"), path)
    return path


def theirs(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session: Any = onnxruntime.InferenceSession(path)
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def test_operators_of_another_domain_alone(tmp_path: Path, cli: Cli) -> None:
    """XGBoost's exporter imports ai.onnx.ml and nothing else."""
    text = """s (float[n, 2] x) => (float[n, 2] y) {
        y = ai.onnx.ml.Scaler<offset = [1.0, 2.0], scale = [3.0, 4.0]>(x) }"""
    path, x = saved(tmp_path / "m.onnx", text, '"ai.onnx.ml" : 1'), np.arange(6, dtype=np.float32).reshape(3, 2)
    told = cli("convert", path, "-o", tmp_path / "made.onnx")
    assert told.code == 0, told.err
    with edgerun.load(tmp_path / "made.onnx", options=ONE) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], theirs(path, {"x": x})[0])


@pytest.mark.parametrize("target", RUNNERS)
@pytest.mark.parametrize("dim", ["?", "-1"])
def test_dimensions_without_a_name_of_their_own(target: str, dim: str, tmp_path: Path, cli: Cli) -> None:
    path = saved(tmp_path / "m.onnx", "d (float[a, b] x) => (float[c, d] y) { y = Relu(x) }")
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            size.Clear()
            if dim == "?":
                size.dim_param = dim
            else:
                size.dim_value = -1
    onnx.save(proto, path)
    np.savez(tmp_path / "feeds.npz", x=-np.ones((2, 7), np.float32))
    told = cli("run", path, "--target", target, "--feeds", tmp_path / "feeds.npz", "-o", tmp_path / "o.npz")
    assert told.code == 0 and np.load(tmp_path / "o.npz")["y"].shape == (2, 7), told.err
    written = tmp_path / {"onnxruntime": "m.ort", "openvino": "m.xml"}[target]
    assert cli("compile", path, "-o", written).code == 0


def test_a_size_that_is_a_sum_is_drawn_as_one(tmp_path: Path, cli: Cli) -> None:
    """As caches of keys are named: "past + new"."""
    path = saved(tmp_path / "m.onnx", "c (float[n, p] x, float[n, q] z, float[n, s] m) => (float[n, s] y) {"
                 " a = Concat<axis = 1>(x, z) y = Mul(a, m) }")  # fmt: skip
    proto = onnx.load(path)
    proto.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "p + q"
    onnx.save(proto, path)
    told = cli("compile", path, "-o", tmp_path / "m.ort")
    assert told.code == 0 and "on 4 feeds" in told.out, told.err


def test_outputs_of_text_are_written(tmp_path: Path, cli: Cli) -> None:
    text = """l (int64[n] x) => (string[n] y) {
        y = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1], values_strings = ["cat", "zebra"]>(x) }"""
    path = saved(tmp_path / "m.onnx", text, '"ai.onnx.ml" : 2, "" : 17')
    np.savez(tmp_path / "feeds.npz", x=np.array([1, 0, 1]))
    told = cli("run", path, "--feeds", tmp_path / "feeds.npz", "-o", tmp_path / "o.npz")
    assert told.code == 0 and np.load(tmp_path / "o.npz")["y"].tolist() == ["zebra", "cat", "zebra"], told.err


def test_an_initializer_that_is_an_input_is_fed(tmp_path: Path, cli: Cli) -> None:
    path = saved(tmp_path / "m.onnx", "f (float[n] x, float s) => (float[n] y) <float s = {2}> { y = Mul(x, s) }")
    for s, want in ((None, [2, 4]), (5, [5, 10])):
        given: dict[str, Any] = {} if s is None else {"s": np.array(s, np.float32)}
        np.savez(tmp_path / "feeds.npz", x=np.array([1, 2], np.float32), **given)
        told = cli("run", path, "--feeds", tmp_path / "feeds.npz", "-o", tmp_path / "o.npz", "--force")
        assert told.code == 0 and np.load(tmp_path / "o.npz")["y"].tolist() == want, told.err


@pytest.mark.parametrize("target", RUNNERS)
def test_the_evaluator_is_not_believed_against_two_runtimes(target: str, tmp_path: Path) -> None:
    """Its Resize from 7 to 17 takes a neighbour too far left where rounding puts a place on a whole number."""
    path = saved(tmp_path / "m.onnx", """r (float[n, 2, 7, 7] x) => (float[n, 2, 17, 17] y) <int64[2] s = {17, 17}> {
        y = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel", axes = [2, 3]>(x, , , s) }""",
        '"" : 18')  # fmt: skip
    if len(RUNNERS) < 2:
        pytest.skip("one runtime is here")
    engine = edgerun.compile(path, target, ONE)
    assert engine.check is not None and engine.check.relative_error < 1e-5
    assert engine.check.reference.startswith({"onnxruntime": "openvino", "openvino": "onnxruntime"}[target])


@pytest.mark.parametrize("target", RUNNERS)
def test_a_loop_without_a_condition(target: str, tmp_path: Path) -> None:
    text = """l (int64 n, float[2] x) => (float[2] y) { y = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) =>
        (bool go, float[2] out) { go = Identity(c) out = Add(a, a) }> }"""
    engine = edgerun.compile(saved(tmp_path / "m.onnx", text), target, ONE)
    with edgerun.load(engine, options=ONE) as session:
        assert session.run({"n": np.array(3), "x": np.array([1, 2], np.float32)})["y"].tolist() == [8, 16]
