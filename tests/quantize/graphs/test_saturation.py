"""Rows and pairs of real layers: what the weight's layout has to do with what saturates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgerun import registry
from edgerun.model import Model
from edgerun.quantize.graphs import saturation

Net = Callable[..., Model]
QUANTIZED = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis=%d>(w, ws, wz)"
PARAMETERS: dict[str, np.ndarray] = {"s": np.float32(1), "z": np.uint8(0)}  # type: ignore[dict-item]


def layer(net: Net, call: str, door: str, stored: np.ndarray, axis: int) -> tuple[Any, Any]:
    """The graph and the node of a layer with int8 weights."""
    count = stored.shape[axis]
    given = {**PARAMETERS, "ws": np.ones(count, np.float32), "wz": np.zeros(count, np.int8), "w": stored}
    text = f"{door} {{ {QUANTIZED % axis} y = {call}(xd, wd) }}"
    graph = net(text, **{name: np.asarray(array) for name, array in given.items()}).clone().graph
    return graph, graph[-1]


CONV = "(float[n,8,9,9] x) => (float[n,c,p,q] y)"
DENSE = "(float[n,8] x) => (float[n,c] y)"


@pytest.mark.parametrize(
    ("call", "door", "shape", "axis", "first", "second", "meet"),
    [
        ("Conv", CONV, (2, 8, 3, 3), 0, (0, 0, 1, 1), (0, 1, 1, 1), True),
        ("Conv", CONV, (2, 8, 3, 3), 0, (0, 1, 1, 1), (0, 2, 1, 1), False),
        ("Conv", CONV, (2, 8, 3, 3), 0, (0, 0, 1, 1), (0, 1, 1, 2), False),
        ("Conv<group=2>", CONV, (4, 4, 3, 3), 0, (3, 2, 0, 0), (3, 3, 0, 0), True),
        ("Conv<group=8>", CONV, (8, 1, 3, 3), 0, (0, 0, 0, 0), (0, 0, 0, 1), False),
        ("Conv<group=8>", CONV, (16, 1, 3, 3), 0, (0, 0, 0, 0), (0, 0, 2, 2), True),
        ("ConvTranspose", CONV, (8, 2, 3, 3), 1, (4, 0, 1, 1), (5, 0, 1, 1), True),
        ("MatMul", DENSE, (8, 3), 1, (6, 2), (7, 2), True),
        ("MatMul", DENSE, (8, 3), 1, (6, 2), (7, 1), False),
        ("Gemm", DENSE, (8, 3), 1, (0, 0), (1, 0), True),
        ("Gemm<transB=1>", DENSE, (3, 8), 0, (0, 0), (0, 1), True),
        ("Gemm<transB=1>", DENSE, (3, 8), 0, (0, 0), (1, 0), False),
    ],
)
def test_two_large_weights_saturate_where_they_meet(
    net: Net, call: str, door: str, shape: tuple[int, ...], axis: int, first: Any, second: Any, meet: bool
) -> None:
    stored = np.zeros(shape, np.int8)
    stored[first] = stored[second] = -127
    graph, node = layer(net, call, door, stored, axis)
    assert saturation.channels(graph) == (int(meet), shape[axis])
    kept = saturation.fitted(node, stored)
    assert kept.shape == shape and kept.dtype == np.int8 and kept.flags.c_contiguous
    assert (kept[first], kept[second]) == ((-64, -64) if meet else (-127, -127))
    assert np.count_nonzero(kept) == 2
    steps, could = saturation.repair(node, stored.astype(np.float32))
    assert steps.shape == (shape[axis],) and could == meet


def test_float_layers_have_no_certificate(net: Net, weights: Callable[..., np.ndarray]) -> None:
    graph = net("(float[n,8] x) => (float[n,3] y) { y = MatMul(x, w) }", w=weights(0, 8, 3)).clone().graph
    assert saturation.channels(graph) == (0, 0)


@pytest.mark.parametrize(("target", "on_sse"), [("openvino", 3), ("onnxruntime", 0)])
def test_certificate_names_every_class(net: Net, target: str, on_sse: int) -> None:
    """ONNX Runtime's kernels for SSE widen before they multiply."""
    graph, _ = layer(net, "MatMul", DENSE, np.full((8, 3), 127, np.int8), 1)
    told = saturation.certificate(graph, 0, registry.target(target).quantization().paired)
    assert told["channels"] == 3 and told["holds for"] == "any input" and told["repaired"] == 0
    assert told["can saturate"] == {
        "SSE4.1": on_sse, "AVX2": 3, "AVX-512": 3, "AVX-VNNI": 0, "AVX-512 VNNI": 0, "AMX": 0, "ARM": 0
    }  # fmt: skip


def test_power_is_read_by_input_channel(net: Net) -> None:
    """The second group's activations are nearly silent: what is lost there costs nothing."""
    stored = np.broadcast_to(np.array([127, 127, 37, -91], np.int8).reshape(1, 4, 1, 1), (4, 4, 1, 1))
    _, node = layer(net, "Conv<group=2>", CONV, stored, 0)
    power = np.array([1, 1, 1, 1, 1e-9, 1e-9, 1, 1])
    steps, could = saturation.repair(node, stored.astype(np.float32), power)
    assert could == 4 and (steps[:2] < 127).all() and (steps[2:] == 127).all()


def test_power_of_a_whole_tensor_is_no_weight(net: Net) -> None:
    """Where a tensor has no channels, one number stands for all of it: nothing to prefer."""
    stored = np.random.default_rng(0).integers(-127, 128, (8, 3)).astype(np.int8)
    _, node = layer(net, "MatMul", "(float[n,t,8] x) => (float[n,t,3] y)", stored, 1)
    weight = stored.astype(np.float32)
    np.testing.assert_array_equal(saturation.repair(node, weight, np.ones(1))[0], saturation.repair(node, weight)[0])


def test_large_layers_are_done_in_blocks(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.random.default_rng(0).integers(-127, 128, (8, 30)).astype(np.int8)
    graph, node = layer(net, "MatMul", DENSE, stored, 1)
    whole = (
        saturation.fitted(node, stored),
        saturation.repair(node, stored.astype(np.float32)),
        saturation.channels(graph),
    )
    monkeypatch.setattr(saturation, "BLOCK", 64)
    parts = (
        saturation.fitted(node, stored),
        saturation.repair(node, stored.astype(np.float32)),
        saturation.channels(graph),
    )
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1][0], parts[1][0])
    assert whole[1][1] == parts[1][1] and whole[2] == parts[2]
