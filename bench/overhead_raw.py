"""The raw runtime calls that `bench.overhead` compares with: each vendor's own fast way, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.measure.latency import Run

Feeds = dict[str, np.ndarray]
Opened = AbstractContextManager[Run]


@dataclass(frozen=True)
class Raw:
    """One runtime: a call that allocates its outputs, one that writes into given arrays, and opening a file."""

    plain: Callable[[bytes, Feeds], Opened]
    bound: Callable[[bytes, Feeds, Feeds], Opened]
    opening: Callable[[Path], Opened]


def _session(source: bytes | str) -> Any:
    import onnxruntime  # type: ignore[import-untyped]

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


@contextmanager
def _ort_plain(data: bytes, feeds: Feeds) -> Iterator[Run]:
    """`InferenceSession.run` with the output names given."""
    session = _session(data)
    names = [output.name for output in session.get_outputs()]
    yield lambda: session.run(names, feeds)


@contextmanager
def _ort_bound(data: bytes, feeds: Feeds, out: Feeds) -> Iterator[Run]:
    """`run_with_iobinding`, bound once."""
    session = _session(data)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for name, array in out.items():
        binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    yield lambda: session.run_with_iobinding(binding)


@contextmanager
def _ort_opening(path: Path) -> Iterator[Run]:
    yield lambda: _session(str(path))


def _compiled(source: bytes | str) -> Any:
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": "1", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(source), "CPU", settings)


@contextmanager
def _ov_plain(data: bytes, feeds: Feeds) -> Iterator[Run]:
    """`InferRequest.infer` with shared inputs, the vendor's fast way that still gives arrays of one's own."""
    request = _compiled(data).create_infer_request()
    yield lambda: request.infer(feeds, share_inputs=True)


@contextmanager
def _ov_bound(data: bytes, feeds: Feeds, out: Feeds) -> Iterator[Run]:
    """`infer` of a request whose tensors lie on the arrays."""
    import openvino

    request = _compiled(data).create_infer_request()
    for name, array in (*feeds.items(), *out.items()):
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    yield lambda: request.infer(None, share_outputs=True)


@contextmanager
def _ov_opening(path: Path) -> Iterator[Run]:
    yield lambda: _compiled(str(path)).create_infer_request()


ONNXRUNTIME = Raw(_ort_plain, _ort_bound, _ort_opening)
OPENVINO = Raw(_ov_plain, _ov_bound, _ov_opening)
