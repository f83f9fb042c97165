"""TFLite's Fourier transform, complex values, and sizes that a file computes: judged by TFLite's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'edgerun[tflite]'")

import edgerun  # noqa: E402
from edgerun.errors import Unsupported  # noqa: E402
from tests.converters.conftest import judged, ops, ran_on  # noqa: E402
from tests.converters.tflite_cases import weight  # noqa: E402

Lite = Callable[..., Path]
ROWS = (None, 5, 24)


def _moved(tf: Any, x: Any) -> Any:
    """What moves complex numbers, and sums them."""
    spectrum = tf.signal.rfft(x)
    turned = tf.transpose(spectrum, [0, 2, 1])[:, 1:7, None]
    both = tf.concat([turned, tf.stack([turned, turned], 4)[..., 1]], 1)
    return tf.abs(tf.reshape(both + both, [-1, 12, 5]))


SPECTRA: dict[str, Callable[[Any, Any], Any]] = {
    "real": lambda tf, x: tf.math.real(tf.signal.rfft(x)),
    "cast": lambda tf, x: tf.cast(tf.signal.rfft(x), tf.float32),
    "imaginary": lambda tf, x: tf.math.imag(tf.signal.rfft(x)),
    "magnitude": lambda tf, x: tf.abs(tf.signal.rfft(x)),
    "padded": lambda tf, x: tf.abs(tf.signal.rfft(x, [32])),
    "cut": lambda tf, x: tf.math.real(tf.signal.rfft(x, [16])),
    "odd": lambda tf, x: tf.math.imag(tf.signal.rfft(x, [15])),
    "over two axes": lambda tf, x: tf.abs(tf.signal.rfft2d(x)),
    "over two axes, cut and padded": lambda tf, x: tf.math.real(tf.signal.rfft2d(x, [3, 32])),
    "over two axes, padded": lambda tf, x: tf.math.imag(tf.signal.rfft2d(x, [8, 16])),
    "moved": _moved,
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra(name: str, opset: int, lite: Lite, tf: Any) -> None:
    """By matrices, in every opset: within 1e-5, and one matrix where one part is read."""
    found, result = judged(lite(lambda x: SPECTRA[name](tf, x), ROWS), opset)
    assert all(o.relative_error <= 1e-5 for o in result.outputs) and len(result.shapes) == 3
    assert not ops(found.model)["DFT"]
    assert ops(found.model)["MatMul"] == {"real": 1, "cast": 1, "imaginary": 1, "cut": 1, "odd": 1}.get(
        name, 6 if "axes" in name else 2
    ) - (2 if "axes" in name and "magnitude" not in name and "over two axes" != name else 0)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_long_spectra_are_transformed(target: str, opset: int, lite: Lite, tf: Any, tmp_path: Path) -> None:
    """From 2048 samples on, both parts by DFT, on the targets too; within 1e-5 of numpy's in float64."""
    path = lite(lambda x: (tf.abs(tf.signal.rfft(x)), tf.abs(tf.signal.rfft2d(x, [4, 4096]))), (1, 3, 4000))
    found, _ = judged(path, opset)
    assert ops(found.model)["DFT"] == 3 and not ops(found.model)["MatMul"]
    x = np.random.default_rng(0).normal(size=(1, 3, 4000)).astype(np.float32)
    got = ran_on(target, found.model, {found.model.inputs[0].name: x}, tmp_path)
    wanted = [np.abs(np.fft.rfft(x.astype(np.float64))), np.abs(np.fft.rfft2(x.astype(np.float64), (4, 4096)))]
    for value, want in zip(sorted(got.values(), key=lambda array: array.shape[1]), wanted, strict=True):
        np.testing.assert_allclose(value, want, atol=1e-5 * want.max())


def test_long_spectra_need_an_opset_that_has_them(lite: Lite, tf: Any) -> None:
    path = lite(lambda x: tf.abs(tf.signal.rfft(x)), (1, 4096))
    with pytest.raises(Unsupported, match="DFT is not in opset 16"):
        edgerun.convert(path, opset=16)


@pytest.mark.parametrize("function", ["product", "door"])
def test_other_complex_values_are_refused(function: str, lite: Lite, tf: Any) -> None:
    def serve(x: Any) -> Any:
        spectrum = tf.signal.rfft(x)
        return spectrum if function == "door" else tf.abs(spectrum * spectrum)

    with pytest.raises(Unsupported, match="complex" if function == "product" else "COMPLEX64"):
        edgerun.convert(lite(serve, ROWS))


def _mel(tf: Any, x: Any, part: str) -> Any:
    frames = tf.signal.frame(x, 48, 20) * weight(48)
    spectrum = tf.signal.rfft(frames, [48])
    return tf.matmul(tf.cast(spectrum, tf.float32) if part == "real" else tf.abs(spectrum), weight(25, 8))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("part", ["real", "magnitude"])
@pytest.mark.parametrize("batch", [None, 2])
def test_a_spectrogram_is_a_convolution(
    part: str, batch: int | None, target: str, lite: Lite, tf: Any, tmp_path: Path
) -> None:
    """Framing, window, transform and, where all of it is linear, mel bands: no frames, no indices, no sizes computed."""
    found, result = judged(lite(lambda x: _mel(tf, x, part), (batch, 500)))
    assert all(o.relative_error <= 1e-5 for o in result.outputs)
    count = ops(found.model)
    assert count["Conv"] == (1 if part == "real" else 2) and count["Gemm"] + count["MatMul"] == (part != "real")
    assert not any(count[op] for op in ("Gather", "Range", "Shape", "Slice", "Mod", "DFT"))
    x = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    (got,) = ran_on(target, found.model, {found.model.inputs[0].name: x}, tmp_path).values()
    np.testing.assert_allclose(got, found.run({found.model.inputs[0].name: x})["tf.identity" if False else
                               found.model.outputs[0].name], atol=1e-4 * np.abs(got).max())  # fmt: skip


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
    """Half of an open length, rounded down, on lengths that the draws have."""
    found, result = judged(
        lite(lambda x: tf.reduce_sum(x[:, : tf.shape(x)[1] // 2], 2) / tf.cast(-tf.shape(x)[1] // 3, tf.float32),
             (None, None, 4))
    )  # fmt: skip
    assert ops(found.model)["Mod"] and all(o.relative_error <= 1e-6 for o in result.outputs)
