"""What ONNX Runtime's profiler adds to every kernel that it times, measured on kernels that do next to nothing.

The clock of a kernel runs while the profiler writes down the shapes of what it reads and makes: microseconds, more than
many a kernel takes. What a node costs a run without a profiler is known of chains of equal nodes, by their length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

IR_VERSION, OPSET = 8, 13
SHORT, LONG = 32, 96  # nodes of a chain
FEW, MANY = 2, 9  # inputs of a node
RUNS, WARM = 40, 5
TURN = 20  # runs of what is profiled, and then as many of the chains
FLOAT, INPUT, OUTPUT = 1, b"x", b"y"


@dataclass(frozen=True)
class Overhead:
    """Seconds that are told too many of a kernel, and of each of its inputs."""

    kernel: float = 0.0
    an_input: float = 0.0

    def without(self, seconds: float, inputs: int) -> float:
        """What a kernel of so many inputs costs a run that nobody profiles."""
        return max(seconds - self.kernel - self.an_input * inputs, 0.0)


class Chains:
    """Chains of equal nodes that take few inputs, and that take many: short, long, and short under the profiler.

    They run in turns with what is profiled: what the profiler adds is half as much again in one second as in another.
    """

    def __init__(self, opened: Callable[[bytes, bool], Any]) -> None:
        """`opened` makes a session of a model, profiled or not."""
        kinds = ((SHORT, False), (LONG, False), (SHORT, True))
        self._sessions = {i: [opened(chain(nodes, i), on) for nodes, on in kinds] for i in (FEW, MANY)}
        self._taken: dict[int, list[list[float]]] = {FEW: [], MANY: []}

    def run(self, times: int) -> None:
        """Run all of them so often."""
        for _ in range(times):
            for inputs, sessions in self._sessions.items():
                self._taken[inputs].append([_seconds(session) for session in sessions])

    def overhead(self, told: Callable[[Any], np.ndarray]) -> Overhead:
        """Measured: `told` ends a profiled session and gives what its runs' kernels took by the profiler, seconds
        `[runs, kernels]`, the first runs left out. The chains run until there are `RUNS` in all.

        Of a chain of n equal nodes a profiler tells n·(k + p) and a run takes n·(k + d) and what is not about nodes:
        with k the kernel, p what the profiler adds, and d what the runtime needs between nodes, p − d is told too much.
        """
        self.run(WARM + RUNS - len(self._taken[FEW]))
        few, many = (self._told_too_much(inputs, told) for inputs in (FEW, MANY))
        an_input = max((many - few) / (MANY - FEW), 0.0)
        return Overhead(few - an_input * FEW, an_input)

    def _told_too_much(self, inputs: int, told: Callable[[Any], np.ndarray]) -> float:
        taken = np.array(self._taken[inputs])[WARM:]
        plain = float(np.median(taken[:, 1] - taken[:, 0])) / (LONG - SHORT)
        return float(np.median(told(self._sessions[inputs][2])[WARM:].mean(axis=1))) - plain


def _seconds(session: Any) -> float:
    began = time.perf_counter()
    session.run(None, {INPUT.decode(): np.zeros(1, np.float32)})
    return time.perf_counter() - began


def chain(nodes: int, inputs: int) -> bytes:
    """An ONNX model, as protobuf: so many Sums of float32[1] one behind the other, each of what is before it and of the
    model's input, which it takes until it has so many inputs."""
    names = [INPUT, *(b"n%d" % index for index in range(nodes - 1)), OUTPUT]
    sums = (_sum([before, *[INPUT] * (inputs - 1)], name) for before, name in zip(names, names[1:], strict=False))
    ends = _field(11, _float(INPUT)) + _field(12, _float(OUTPUT))
    graph = b"".join(_field(1, node) for node in sums) + _field(2, b"chain") + ends
    return _number(1, IR_VERSION) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, OPSET))


def _sum(inputs: list[bytes], output: bytes) -> bytes:
    read = b"".join(_field(1, name) for name in inputs)
    return read + _field(2, output) + _field(3, b"sum " + output) + _field(4, b"Sum")


def _float(name: bytes) -> bytes:
    tensor = _number(1, FLOAT) + _field(2, _field(1, _number(1, 1)))
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
