"""Weights that are not finite: one refusal from every scheme, one line from convert, and no warning of numpy's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from edgerun import registry
from edgerun.model import Model
from edgerun.quantize.graphs.moments import accumulate
from edgerun.runtime import Engine, Options
from edgerun.verbs.finite import broken
from tests.verbs.conftest import Ran

Cli = Callable[..., Ran]
NET = """(float[n,64] x) => (float[n,8] y) { h = MatMul(x, w)  r = Relu(h)  g = Gemm(r, v, b)  y = Add(g, mask) }"""
X = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)


def model(name: str = "", value: float = np.nan) -> onnx.ModelProto:
    """A network whose constant of this name begins with that value."""
    draw = np.random.default_rng(0)
    arrays = {
        "w": draw.standard_normal((64, 64)),
        "v": draw.standard_normal((64, 8)),
        "b": np.zeros(8),
        "mask": np.zeros(8),
    }
    if name:
        arrays[name].reshape(-1)[0] = value
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {NET}')
    for key, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), key))
    for node in proto.graph.node:
        node.name = node.output[0]
    return proto


@pytest.fixture
def place(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=X)
    return tmp_path


def schemes() -> list[str]:
    return list(registry.target("onnxruntime").quantization().schemes)


@pytest.mark.parametrize(("name", "value", "told"), [
    ("w", np.nan, "'h' (MatMul): 1 of 4,096 numbers"), ("v", -np.inf, "'g' (Gemm): 1 of 520 numbers"),
    ("b", np.inf, "'g' (Gemm): 1 of 520 numbers"),
])  # fmt: skip
def test_every_scheme_refuses_them_in_one_way(cli: Cli, place: Path, name: str, value: float, told: str) -> None:
    onnx.save(model(name, value), place / "m.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scheme in schemes():
            asked = ["--scheme", scheme, "--calibration", place / "x.npz", "-o", place / "o.onnx"]
            done = cli("compress", place / "m.onnx", *asked)
            assert done.code == 2 and f"weights of the model are not finite\n  got: {told}\n" in done.err, scheme
    assert sorted(file.name for file in place.iterdir()) == ["m.onnx", "x.npz"]


def test_convert_says_so(cli: Cli, place: Path) -> None:
    """It brings a model in as it is."""
    onnx.save(model("w"), place / "m.onnx")
    done = cli("convert", place / "m.onnx", "-o", place / "o.onnx")
    assert done.code == 0 and done.err.count("not finite") == 1 and "'h' (MatMul): 1 of 4,096 numbers" in done.err
    onnx.save(model("mask", -np.inf), place / "mask.onnx")
    done = cli("convert", place / "mask.onnx", "-o", place / "p.onnx")
    assert done.code == 0 and "not finite" not in done.err


def test_large_numbers_and_masks_are_finite() -> None:
    """A sum in float32 would not be; and a mask may be minus infinity."""
    proto = model("mask", -np.inf)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((64, 64), 3e38, np.float32), "w"))
    assert broken(Model.from_proto(proto)) == []


@pytest.mark.parametrize("scheme", schemes())
def test_activations_that_overflow_are_one_refusal(cli: Cli, place: Path, scheme: str) -> None:
    """Finite weights, whose products are not."""
    proto = model()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((64, 64), 3e38, np.float32), "w"))
    onnx.save(proto, place / "m.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = ["--scheme", scheme, "--calibration", place / "x.npz"]
        done = cli("compress", place / "m.onnx", *asked, "-o", place / "o.onnx")
    assert done.code == 2 and "is not finite on the calibration data" in done.err and not (place / "o.onnx").exists()


def test_moments_of_numbers_whose_squares_are_too_large_for_float32() -> None:
    """Against float64."""
    given = {"x": X * np.float32(1e25)}
    session = registry.target("onnxruntime").load(Engine("onnxruntime", model().SerializeToString()), Options(1))
    with session, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = accumulate(session, [given, {"x": X}], ["x"])["x"]
    wide = given["x"].astype(np.float64)
    np.testing.assert_allclose(found, wide.T @ wide + (X.T @ X), rtol=1e-6)
