"""ONNX Runtime's runs as CUDA graphs: all kernels of a run are sent to the GPU at once, from the second run on."""

# A graph reads and writes the memory that it was captured with. So every shape of the feeds has buffers of its own on
# the GPU; feeds are copied into them and outputs out of them.

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DEVICE = "cuda"
ID, NONE = "gpu_graph_id", "-1"  # the runtime's key of a run: which graph it is; none
MOST = 16  # shapes that are captured: each holds memory. What comes later runs as without graphs


@dataclass(frozen=True)
class _Graph:
    """Buffers on the GPU by name, and how to run on them."""

    inputs: Mapping[str, Any]
    outputs: tuple[Any, ...]
    binding: Any
    options: Any


class Graphs:
    """The graphs of one session, which has to have been opened with `enable_cuda_graph`. Runs take turns."""

    def __init__(self, runtime: Any, session: Any, names: Sequence[str]) -> None:
        self._runtime, self._names = runtime, list(names)
        self._session: Any = session
        self._graphs, self._lock = dict[tuple[tuple[str, tuple[int, ...]], ...], _Graph](), threading.Lock()

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs in the order of the names."""
        key = tuple((name, feeds[name].shape) for name in sorted(feeds))
        with self._lock:
            if key not in self._graphs:
                plain: list[np.ndarray] = self._session.run(self._names, feeds, self._options(NONE))
                if len(self._graphs) >= MOST:
                    return plain
                self._graphs[key] = self._bound(feeds, plain, str(len(self._graphs) + 1))
            graph = self._graphs[key]
            for name, array in feeds.items():
                graph.inputs[name].update_inplace(np.require(array, requirements="C"))
            self._session.run_with_iobinding(graph.binding, graph.options)
            return [value.numpy() for value in graph.outputs]

    def close(self) -> None:
        """Let go of the buffers."""
        with self._lock:
            self._graphs.clear()
            self._session = None

    def _bound(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray], number: str) -> _Graph:
        """Buffers for these feeds and outputs; the first run on them captures the graph."""
        binding, inputs, results = self._session.io_binding(), {}, []
        for name, array in feeds.items():
            inputs[name] = self._buffer(array)
            binding.bind_ortvalue_input(name, inputs[name])
        for name, array in zip(self._names, outputs, strict=True):
            results.append(self._buffer(array))
            binding.bind_ortvalue_output(name, results[-1])
        return _Graph(inputs, tuple(results), binding, self._options(number))

    def _buffer(self, like: np.ndarray) -> Any:
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(list(like.shape), like.dtype.type, DEVICE, 0)

    def _options(self, number: str) -> Any:
        options = self._runtime.RunOptions()
        options.add_run_config_entry(ID, number)
        return options
