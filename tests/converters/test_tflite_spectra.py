"""TFLite's Fourier transform, sizes that a file computes, IF, and what is compared: judged by TFLite's interpreter."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'edgerun[tflite]'")

import edgerun  # noqa: E402
from edgerun.converters import _tflite_files, _tflite_sizes  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.parity import Parity  # noqa: E402
from tests.converters.conftest import judged, ops, packed, ran_on  # noqa: E402
from tests.converters.tflite_cases import weight  # noqa: E402

Lite = Callable[..., Path]
ROWS = (None, 4, 32)


def _moved(tf: Any, x: Any) -> Any:
    """Complex numbers in other shapes, which is all that TFLite does with them before it takes a part."""
    spectrum = tf.reshape(tf.expand_dims(tf.signal.rfft(x), 1), [-1, 2, 34])
    return tf.abs(spectrum) + tf.math.real(spectrum)


# What is computed, and how many products with matrices that takes: one for each part that is read, four over rows.
SPECTRA: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    "real": (lambda tf, x: tf.math.real(tf.signal.rfft(x)), 1),
    "cast": (lambda tf, x: tf.cast(tf.signal.rfft(x), tf.float32), 1),
    "imaginary": (lambda tf, x: tf.math.imag(tf.signal.rfft(x)), 1),
    "magnitude": (lambda tf, x: tf.abs(tf.signal.rfft(x)), 2),
    "padded": (lambda tf, x: tf.abs(tf.signal.rfft(x, [64])), 2),
    "cut": (lambda tf, x: tf.math.real(tf.signal.rfft(x, [16])), 1),
    "over two axes": (lambda tf, x: tf.abs(tf.signal.rfft2d(x)), 6),
    "over two axes, cut and padded": (lambda tf, x: tf.math.real(tf.signal.rfft2d(x, [2, 64])), 4),
    "over two axes, padded and cut": (lambda tf, x: tf.math.imag(tf.signal.rfft2d(x, [8, 16])), 4),
    "in another shape": (_moved, 2),
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra(name: str, opset: int, lite: Lite, tf: Any) -> None:
    """By matrices, in every opset, within 1e-5; a part that nothing reads is not computed."""
    function, products = SPECTRA[name]
    found, result = judged(lite(lambda x: function(tf, x), ROWS), opset)
    assert all(o.relative_error <= 1e-5 for o in result.outputs) and len(result.shapes) == 3
    assert ops(found.model)["MatMul"] == products and not ops(found.model)["DFT"]


@pytest.mark.parametrize("length", [512, 2048, 4096])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_long_spectra_take_two_steps(target: str, length: int, lite: Lite, tf: Any, tmp_path: Path) -> None:
    """By small matrices, within 1e-6 of numpy's in float64, cut, padded and over two axes; on the targets too."""
    path = lite(lambda x: (tf.abs(tf.signal.rfft(x, [length])), tf.abs(tf.signal.rfft2d(x, [4, length]))), (1, 3, 2000))
    found, _ = judged(path, 13)
    held = found.model.ir.graph.initializers.values()
    assert max(value.const_value.size for value in held if value.const_value is not None) <= 1.1 * length
    x = np.random.default_rng(0).normal(size=(1, 3, 2000)).astype(np.float32)
    got = ran_on(target, found.model, {found.model.inputs[0].name: x}, tmp_path)
    exact = x.astype(np.float64)
    wanted = [np.abs(np.fft.rfft(exact, length)), np.abs(np.fft.rfft2(exact, (4, length)))]
    for value, want in zip(sorted(got.values(), key=lambda array: array.shape[1]), wanted, strict=True):
        np.testing.assert_allclose(value, want, atol=1e-6 * want.max())


@pytest.mark.parametrize("linear", [True, False])
def test_one_matrix_where_it_joins_the_next(linear: bool, lite: Lite, tf: Any) -> None:
    """The real part times mel bands is one product with a matrix of their size."""

    def serve(x: Any) -> Any:
        real = tf.math.real(tf.signal.rfft(x))
        return tf.matmul(real if linear else real * real, weight(513, 8))

    found, result = judged(lite(serve, (None, 6, 1024)))
    assert all(o.relative_error <= 1e-5 for o in result.outputs)
    assert ops(found.model)["MatMul"] + ops(found.model)["Gemm"] == (1 if linear else 5)


@pytest.mark.parametrize("function", ["product", "door"])
def test_other_complex_values_are_refused(function: str, lite: Lite, tf: Any) -> None:
    def serve(x: Any) -> Any:
        spectrum = tf.signal.rfft(x)
        return spectrum if function == "door" else tf.abs(spectrum * spectrum)

    with pytest.raises(Unsupported, match="complex" if function == "product" else "COMPLEX64"):
        edgerun.convert(lite(serve, ROWS))


def _mel(tf: Any, x: Any, part: str) -> Any:
    frames = tf.signal.frame(x, 64, 20) * weight(64)
    spectrum = tf.signal.rfft(frames, [64])
    return tf.matmul(tf.cast(spectrum, tf.float32) if part == "real" else tf.abs(spectrum), weight(33, 8))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("part", ["real", "magnitude"])
@pytest.mark.parametrize("batch", [None, 2])
def test_a_spectrogram_is_a_convolution(
    part: str, batch: int | None, target: str, lite: Lite, tf: Any, tmp_path: Path
) -> None:
    """Framing, window, transform and, where all is linear, mel bands: no frames, no indices, no sizes computed."""
    found, result = judged(lite(lambda x: _mel(tf, x, part), (batch, 500)))
    assert all(o.relative_error <= 1e-5 for o in result.outputs)
    count = ops(found.model)
    assert count["Conv"] == (1 if part == "real" else 2) and count["Gemm"] + count["MatMul"] == (part != "real")
    assert not any(count[op] for op in ("Gather", "Range", "Shape", "Slice", "Mod", "DFT"))
    x = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    (got,) = ran_on(target, found.model, {found.model.inputs[0].name: x}, tmp_path).values()
    (want,) = found.run({found.model.inputs[0].name: x}).values()
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


SIZES: dict[str, tuple[tuple[int | None, ...], Callable[[Any, Any], Any]]] = {
    "halves": ((None, 12, 4), lambda tf, x: tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1] // 2, -1])),
    "as long as": ((None, 12, 4), lambda tf, x: x[:, : tf.shape(x)[1] - 5] + tf.ones([tf.shape(x)[2]])),
    "product": ((None, 6), lambda tf, x: tf.reshape(x, [tf.reduce_prod(tf.shape(x)[1:]), -1])),
    "places": ((None, 6), lambda tf, x: x * tf.cast(tf.range(tf.shape(x)[1]) % 3 + tf.maximum(2, 1), tf.float32)),
    "spread": ((None, 6), lambda tf, x: tf.broadcast_to(x[:, None], [tf.shape(x)[0], 3, tf.shape(x)[1]])),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_computed_once(name: str, lite: Lite, tf: Any) -> None:
    """What follows from the door's sizes is no arithmetic in the graph; the batch alone stays open."""
    shape, function = SIZES[name]
    found, result = judged(lite(lambda x: function(tf, x), shape))
    assert len(result.shapes) == 3 and all(o.relative_error == 0 for o in result.outputs)
    assert not any(ops(found.model)[op] for op in ("Range", "Div", "Mod", "ReduceProd", "Max"))


def test_sizes_that_stay_open_are_computed_in_the_graph(lite: Lite, tf: Any) -> None:
    """Half of an open length, rounded down; a third of it, below zero."""

    def serve(x: Any) -> Any:
        length = tf.shape(x)[1]
        return tf.reduce_sum(x[:, 1 : length // 2], 2) * tf.cast(-length // 3, tf.float32), x[:, : length - 3 : 2]

    found, result = judged(lite(serve, (None, None, 4)))
    assert ops(found.model)["Mod"] and all(o.relative_error <= 1e-6 for o in result.outputs)


def test_if_takes_both_ways(lite: Lite, tf: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Inputs are drawn until both ways were taken, and both are compared; the targets run it."""

    def serve(x: Any) -> Any:
        y = tf.nn.relu(x @ weight(6, 6))
        return tf.cond(tf.reduce_sum(x) > 2.0, lambda: (y @ weight(6, 3), y * 2.0), lambda: (x[:, :3], y - x))

    path = lite(serve, (1, 6))
    found, result = judged(path)
    ran = [float(feeds["a"].sum()) > 2 for feeds in found.feeds]
    assert any(ran) and not all(ran) and len(result.shapes) == len(ran) and not caplog.records
    assert ops(found.model)["If"] == 1 and all(o.relative_error <= 1e-6 for o in result.outputs)
    for target in ("onnxruntime", "openvino"):
        for feeds in found.feeds:
            got = ran_on(target, found.model, feeds, tmp_path)
            for name, want in found.run(feeds).items():
                np.testing.assert_allclose(got[name], want, atol=1e-5)


def test_a_way_that_nothing_takes_is_told(lite: Lite, tf: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = lite(lambda x: tf.cond(tf.reduce_sum(x) > 900.0, lambda: x * 2.0, lambda: x - 1.0), (1, 6))
    judged(path)
    assert "takes its else way on every input" in caplog.text


def test_what_a_way_cannot_do_is_told(lite: Lite, tf: Any) -> None:
    path = lite(lambda x: tf.cond(tf.reduce_sum(x) > 0.0, lambda: tf.math.atan2(x, x), lambda: x), (1, 6))
    with pytest.raises(Unsupported, match=r"in its then graph: ATAN2 \(.*\): not supported"):
        edgerun.convert(path)


def test_a_way_that_holds_its_own_if_is_damage(lite: Lite, tf: Any) -> None:
    path = lite(lambda x: tf.cond(tf.reduce_sum(x) > 0.0, lambda: x * 2.0, lambda: x), (1, 6))
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (branch,) = [o for o in model.subgraphs[0].operators if hasattr(o.builtinOptions, "thenSubgraphIndex")]
    for index in (0, -1, 9):
        branch.builtinOptions.thenSubgraphIndex = index
        path.write_bytes(packed(model))
        with pytest.raises(EdgerunError, match="a way of an IF is no graph, or the one that it is in"):
            edgerun.convert(path)


@pytest.mark.parametrize("shift", [-12.0, 40.0])
def test_what_saturates_is_compared_before(shift: float, lite: Lite, tf: Any, tmp_path: Path) -> None:
    """Outputs of 6e-6, which float32 rounds by more than they may differ, and of 1, which would pass whatever is
    computed: the sums before the Sigmoid are compared."""
    path = lite(lambda x: tf.sigmoid(x @ weight(6, 3) + shift), (None, 6))
    model = edgerun.convert(path, output=tmp_path / "net.onnx")
    assert list(model.history[-1].options["compared before"].values()) == ["Sigmoid"]
    assert all(0 <= o.relative_error <= 1e-5 for o in Parity.of(model).outputs)


def test_signals_are_drawn_as_long_as_the_window(lite: Lite, tf: Any, tmp_path: Path) -> None:
    """Shorter ones give TFLite an empty output, which compares nothing."""
    path = lite(lambda x: tf.nn.conv1d(x[..., None], weight(512, 1, 4), 160, "VALID"), (1, None))
    model = edgerun.convert(path, output=tmp_path / "net.onnx")
    assert all("1024" in shape or "2048" in shape for shape in Parity.of(model).shapes)


def test_numbers_without_end_are_not_followed(lite: Lite, tf: Any) -> None:
    """Squares of squares, beyond int32 at the fifth, and a constant of 2³¹ elements: neither is computed beforehand."""

    def serve(x: Any) -> Any:
        number = tf.shape(x)[1]
        for _ in range(40):
            number = number * number
        huge = tf.fill([tf.shape(x)[1] * 2**15, 2**14], tf.shape(x)[1])
        return x * tf.cast(number, tf.float32), huge[0, 0]

    path = lite(serve, (2, None))
    net = _tflite_files.load(path)
    kinds = [operator.kind for operator in _tflite_sizes.settled(net, [(2, 4)]).operators]
    assert kinds.count("FILL") == 1 and kinds.count("MUL") > 20
