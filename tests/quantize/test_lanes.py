"""Lanes: the order of the items, no more under way than asked for, and the same bytes with any number of them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edgerun import quantize, registry
from edgerun.data import open_data
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.quantize._lanes import in_lanes
from edgerun.verbs.making import opened


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_results_come_in_order_and_nothing_runs_ahead(lanes: int) -> None:
    under_way, most, taken = set[int](), 0, list[int]()
    lock = threading.Lock()

    def source() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    def run(item: int) -> int:
        nonlocal most
        with lock:
            under_way.add(item)
            most = max(most, len(under_way))
        time.sleep(0.001 * (item % 3))
        with lock:
            under_way.remove(item)
        return item * item

    got = list[tuple[int, int]]()
    for pair in in_lanes(run, source(), lanes):
        got.append(pair)
        assert len(taken) <= len(got) + lanes
    assert got == [(item, item * item) for item in range(20)] and most <= lanes


def test_an_end_waits_for_what_is_under_way() -> None:
    """After a close no thread of it runs on; an error comes out at its item's place."""
    done = list[int]()

    def run(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        time.sleep(0.01)
        done.append(item)
        return item

    stream = in_lanes(run, itertools.count(), 2)
    assert next(stream) == (0, 0)
    stream.close()
    seen = len(done)
    time.sleep(0.05)
    assert len(done) == seen <= 3
    got = list[int]()
    with pytest.raises(ValueError, match="five"):
        for item, _ in in_lanes(run, itertools.count(), 2):
            got.append(item)
    assert got == [0, 1, 2, 3, 4]


def test_lanes_change_no_bit(net: Callable[..., Model], weights: Callable[..., np.ndarray]) -> None:
    model = net(
        "(float[n,8,6,6] x) => (float[n,8,p,q] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }",
        w=weights(0, 8, 8, 3, 3), v=weights(1, 8, 8, 1, 1),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((100, 8, 6, 6)).astype(np.float32)
    made = []
    for lanes in (1, 2, 5):
        data = open_data({"x": x}, model.inputs, batch=4)
        rules = registry.target("onnxruntime").quantization()
        made.append(quantize.apply("static_int8", model, Request(rules, opened, data, lanes=lanes)))
    assert len({result.to_bytes() for result in made}) == 1
