"""What the probes tell of activations, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun.quantize.fold import infer_shapes
from edgerun.quantize.graphs.activation import Activation
from edgerun.quantize.graphs.statistics import Watch

NET = "(float[n,4,6,5] x) => (float[n,3] y) { c = Conv(x, w, b) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g) " \
      "y = MatMul(f, m) }"  # fmt: skip
TOKENS = "(float[n,l,6] x) => (float[n,l,4] y) { y = MatMul(x, m) }"


def watched(
    net: Any, request_for: Any, model: Any, feeds: np.ndarray, names: list[str], first: int, **vectors: int
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


@pytest.mark.parametrize("size", [6, 40])
def test_vectors_are_some_of_the_values(net: Any, weights: Any, request_for: Any, size: int) -> None:
    """Pixels of a picture, tokens of a row: as they were seen, and as they are once channels were moved and scaled."""
    pictures = net(f"(float[n,4,{size},{size}] x) => (float[n,5,{size},{size}] y) {{ y = Conv(x, w) }}",
                   w=weights(0, 5, 4, 1, 1))  # fmt: skip
    feeds = np.random.default_rng(5).standard_normal((8, 4, size, size)).astype(np.float32)
    vectors = watched(net, request_for, pictures, feeds, ["x"], first=8, x=60)["x"].vectors
    assert len(vectors.batches) == 2 and all(30 <= len(batch) <= 150 for batch in vectors.batches)
    pixels = {pixel.tobytes() for pixel in np.ascontiguousarray(feeds.transpose(0, 2, 3, 1)).reshape(-1, 4)}
    taken = [row.tobytes() for batch in vectors.batches for row in batch]
    assert set(taken) <= pixels and len(set(taken)) == len(taken)
    offsets, factors = np.array([1.0, -2.0, 0.0, 5.0]), np.array([2.0, 0.5, 1.0, 4.0])
    changed = vectors.scaled(factors).moved(offsets).of(vectors.batches)
    np.testing.assert_allclose(changed, np.concatenate(vectors.batches) * factors - offsets, atol=1e-5)

    tokens = net(TOKENS, m=weights(0, 6, 4))
    feeds = np.random.default_rng(4).standard_normal((4, 70, 6)).astype(np.float32)
    (batch,) = watched(net, request_for, tokens, feeds, ["x"], first=4, x=60)["x"].vectors.batches
    assert 50 <= len(batch) <= 70
    assert {row.tobytes() for row in batch} <= {row.tobytes() for row in feeds.reshape(-1, 6)}


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
