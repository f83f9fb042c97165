"""What a runtime takes besides kernels: by call, and by node that it comes to. Two chains tell it by their length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np

from edgerun import registry
from edgerun.errors import EdgerunError
from edgerun.measure.accounting import Dispatch
from edgerun.runtime import Engine, Options

SHORT, LONG = 32, 96  # nodes of a chain
OPSET, IR_VERSION = 13, 8


@contextmanager
def chains(target: str, options: Options) -> Iterator[dict[str, Callable[[], object]]]:
    """Runs of a short and of a long chain on `target`, by name, to be timed in turns with others; none where it does
    not take them."""
    with ExitStack() as stack:
        try:
            runs = {"short": _run(stack, target, SHORT, options), "long": _run(stack, target, LONG, options)}
        except EdgerunError:  # a runtime that reads no ONNX, or has no such kernel
            runs = {}
        yield runs


def _run(stack: ExitStack, target: str, nodes: int, options: Options) -> Callable[[], object]:
    """One that has run once."""
    engine, feed = Engine(target, chain(nodes)), {"x": np.zeros((1, 2), np.float32)}
    session = stack.enter_context(registry.target(target).load(engine, replace(options, usual={})))
    session.run(feed)
    return lambda: session.run(feed)


def dispatch(timed: Mapping[str, np.ndarray]) -> Dispatch | None:
    """Seconds by node and by call, of timings [rounds, repetitions] of `chains`; None where there are none.

    A chain of n nodes takes call + n·node: the slope between the two lengths of a round, median over rounds. What the
    kernel of such a node takes, which does next to nothing, is in it.
    """
    if "short" not in timed:
        return None
    short, long = (np.median(timed[name], axis=1) for name in ("short", "long"))
    node = max(float(np.median(long - short)) / (LONG - SHORT), 0.0)
    return Dispatch(node, max(float(np.median(short)) - SHORT * node, 0.0))


def chain(nodes: int) -> bytes:
    """An ONNX model of so many nodes one behind the other, each a sum along two numbers: x -> y, float32[1, 2].

    No runtime fuses CumSums into one kernel, as it does with Adds.
    """
    from onnx import TensorProto, helper

    names = ["x", *(f"n{index}" for index in range(1, nodes)), "y"]
    sums = [helper.make_node("CumSum", [a, "axis"], [b], b) for a, b in zip(names, names[1:], strict=False)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
    graph = helper.make_graph(sums, "chain", ends[:1], ends[1:], [axis])
    opset = [helper.make_opsetid("", OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString())
