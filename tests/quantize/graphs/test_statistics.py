"""What the probes tell of activations, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun.quantize.fold import infer_shapes
from edgerun.quantize.graphs.activation import Activation
from edgerun.quantize.graphs.statistics import Watch
from edgerun.quantize.graphs.windows import Window

NET = "(float[n,4,6,5] x) => (float[n,3] y) { c = Conv(x, w, b) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g) " \
      "y = MatMul(f, m) }"  # fmt: skip
TOKENS = "(float[n,l,6] x) => (float[n,l,4] y) { y = MatMul(x, m) }"


def watched(
    net: Any, request_for: Any, model: Any, feeds: np.ndarray, names: list[str], first: int, **vectors: Window
) -> Any:
    """What `Watch` saw of `feeds` in batches of 4, the first `first` of them in full."""
    infer_shapes(model.ir)
    watch, opened = Watch(model.ir, names, 32, vectors), request_for().open
    for full in (True, False):
        with opened(watch.graph(full)) as session:
            part = feeds[:first] if full else feeds[first:]
            for start in range(0, len(part), 4):
                watch.add(session.run({"x": part[start : start + 4]}))
    return watch.activations()


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_channels_are_exact(net: Any, evaluate: Any, weights: Any, request_for: Any, opset: int) -> None:
    """Extremes of all data and mean squares of the first, per channel; a ReLU's lowest value counts as zero."""
    model = net(NET, opset=opset, w=weights(0, 5, 4, 3, 3), b=weights(1, 5), m=weights(2, 5, 3))
    feeds = np.random.default_rng(3).standard_normal((24, 4, 6, 5)).astype(np.float32)
    told = net(NET.replace("=> (float[n,3] y)", "=> (float[n,5,4,3] c, float[n,5,4,3] r, float[n,5] f)"), opset=opset,
               w=weights(0, 5, 4, 3, 3), b=weights(1, 5), m=weights(2, 5, 3))  # fmt: skip
    truth = dict(zip(("c", "r", "f"), evaluate(told, {"x": feeds}), strict=True)) | {"x": feeds}
    seen: dict[str, Activation] = watched(net, request_for, model, feeds, ["x", "c", "r", "f"], first=8)
    for name, array in truth.items():
        rest, found = tuple(i for i in range(array.ndim) if i != 1), seen[name]
        low = np.zeros(array.shape[1]) if name == "r" else array.min(axis=rest)
        np.testing.assert_allclose(found.channels.low, low, atol=1e-5)
        np.testing.assert_allclose(found.channels.high, array.max(axis=rest), atol=1e-5)
        np.testing.assert_allclose(found.channels.power, (array[:8] ** 2).mean(axis=rest), rtol=1e-4)
        np.testing.assert_allclose(found.highs, array.reshape(6, -1).max(axis=1), atol=1e-5)


def test_samples_know_their_channels(net: Any, weights: Any, request_for: Any) -> None:
    """Every sampled value stands in its channel of the tensor, and scaling a channel scales its values alone."""
    model = net(NET, w=weights(0, 5, 4, 3, 3), b=weights(1, 5), m=weights(2, 5, 3))
    feeds = np.random.default_rng(3).standard_normal((8, 4, 6, 5)).astype(np.float32)
    found = watched(net, request_for, model, feeds, ["x"], first=8)["x"]
    assert 32 <= len(found.sample) / 2 <= 64 and len(found.owner) == len(found.sample)
    for channel in range(4):
        assert np.isin(found.sample[found.owner == channel], feeds[:, channel]).all()
    factors = np.array([1.0, 2.0, 4.0, 0.5])
    scaled = found.scaled(factors)
    np.testing.assert_array_equal(scaled.sample, found.sample * factors[found.owner].astype(np.float32))
    np.testing.assert_allclose(scaled.channels.peak, found.channels.peak * factors)


def test_tokens_have_their_channels_last(net: Any, weights: Any, request_for: Any) -> None:
    """What a matrix product reads is told per feature, of any number of tokens."""
    model = net(TOKENS, m=weights(0, 6, 4))
    feeds = np.random.default_rng(4).standard_normal((12, 7, 6)).astype(np.float32)
    found = watched(net, request_for, model, feeds, ["x"], first=4)["x"]
    assert found.axis == 2
    np.testing.assert_allclose(found.channels.high, feeds.max(axis=(0, 1)), atol=1e-6)
    assert all(np.isin(found.sample[found.owner == c], feeds[..., c]).all() for c in range(6))


def test_vectors_are_some_of_the_values(net: Any, weights: Any, request_for: Any) -> None:
    """Tokens as they were seen, and as they are once channels were moved and scaled."""
    tokens = net(TOKENS, m=weights(0, 6, 4))
    feeds = np.random.default_rng(4).standard_normal((4, 70, 6)).astype(np.float16).astype(np.float32)
    vectors = watched(net, request_for, tokens, feeds, ["x"], first=4, x=Window(15, 4))["x"].vectors
    batch = vectors.of(vectors.batches)
    assert len(vectors.batches) == 1 and vectors.batches[0].dtype == np.float16
    assert 50 <= len(batch) <= 70
    assert {row.tobytes() for row in batch} <= {row.tobytes() for row in feeds.reshape(-1, 6)}
    offsets, factors = np.array([1.0, -2.0, 0.0, 5.0, 1.0, 1.0]), np.array([2.0, 0.5, 1.0, 4.0, 1.0, 3.0])
    changed = vectors.scaled(factors).moved(offsets).of(vectors.batches)
    np.testing.assert_allclose(changed, batch * factors - offsets, atol=1e-5)


@pytest.mark.parametrize("open_sizes", [False, True])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2)])
def test_windows_are_what_a_kernel_sees(
    net: Any, weights: Any, request_for: Any, kernel: int, dilation: int, open_sizes: bool
) -> None:
    """Every vector is a patch of the picture, [C, h, w] flat, no two are the same, and factors go by channel.

    The pictures' values are float16's, in which vectors are kept.
    """
    attribute = f"<dilations=[{dilation},{dilation}]>"
    sizes = "h,w" if open_sizes else "9,20"
    model = net(f"(float[n,4,{sizes}] x) => (float[n,5,p,q] y) {{ y = Conv{attribute}(x, w) }}",
                w=weights(0, 5, 4, kernel, kernel))  # fmt: skip
    feeds = np.random.default_rng(5).standard_normal((8, 4, 9, 20)).astype(np.float16).astype(np.float32)
    window = Window(10, 4, (kernel, kernel), (dilation, dilation))
    vectors = watched(net, request_for, model, feeds, ["x"], first=8, x=window)["x"].vectors
    reach = (kernel - 1) * dilation + 1
    patches = np.lib.stride_tricks.sliding_window_view(feeds, (reach, reach), axis=(2, 3))[..., ::dilation, ::dilation]
    known = {np.ascontiguousarray(patch).tobytes() for row in patches.transpose(0, 2, 3, 1, 4, 5) for column in row
             for patch in column}  # fmt: skip
    told = vectors.of(vectors.batches)
    taken = [row.tobytes() for row in told]
    assert len(vectors.batches) == 2 and len(taken) == 8 * 9
    assert set(taken) <= known and len(set(taken)) == len(taken)
    factors = np.array([2.0, 0.5, 1.0, 4.0])
    scaled = vectors.scaled(factors).of(vectors.batches)
    np.testing.assert_allclose(scaled, told * np.repeat(factors, kernel**2), rtol=1e-6)


def test_no_kernel_fits_a_smaller_picture(net: Any, weights: Any, request_for: Any) -> None:
    model = net("(float[n,4,2,2] x) => (float[n,5,2,2] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=weights(0, 5, 4, 3, 3))
    feeds = np.ones((4, 4, 2, 2), np.float32)
    window = Window(10, 4, (3, 3), (1, 1))
    assert watched(net, request_for, model, feeds, ["x"], first=4, x=window)["x"].vectors.batches == ()


def test_moved_and_varying_are_those_of_the_values(net: Any, weights: Any, request_for: Any) -> None:
    """Off by what some 20 sampled values of a channel miss: 0.7 of a variance of 1, and 0.5 of (mean − o)²."""
    model = net(NET, w=weights(0, 5, 4, 3, 3), b=weights(1, 5), m=weights(2, 5, 3))
    middle = np.array([3.0, -5.0, 0.0, 20.0], np.float32).reshape(4, 1, 1)
    feeds = np.random.default_rng(3).standard_normal((8, 4, 6, 5)).astype(np.float32) + middle
    found = watched(net, request_for, model, feeds, ["x"], first=8)["x"]
    offsets = np.array([3.0, -4.0, 1.0, 0.0])
    moved, left = found.moved(offsets), feeds - offsets.reshape(4, 1, 1)
    np.testing.assert_allclose(moved.channels.low, left.min(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(moved.channels.high, left.max(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(moved.channels.power, (left**2).mean(axis=(0, 2, 3)), rtol=0.1, atol=1.2)
    np.testing.assert_array_equal(moved.sample, found.sample - offsets[found.owner].astype(np.float32))
    assert moved.lows.min() == pytest.approx(left.min(), abs=1e-5)
    np.testing.assert_allclose(found.varying.power, feeds.var(axis=(0, 2, 3)), rtol=0.7)


@pytest.mark.parametrize("peak", [1e-3, 1e5])
def test_vectors_beyond_half_precision_stay_as_they_are(net: Any, weights: Any, request_for: Any, peak: float) -> None:
    model = net("(float[n,6] x) => (float[n,5] y) { y = MatMul(x, w) }", w=weights(0, 6, 5))
    feeds = (np.random.default_rng(6).uniform(-peak, peak, (8, 6))).astype(np.float32)
    vectors = watched(net, request_for, model, feeds, ["x"], first=8, x=Window(15, 4))["x"].vectors
    kept = {row.tobytes() for batch in vectors.batches for row in batch}
    assert kept and kept <= {row.tobytes() for row in feeds}
