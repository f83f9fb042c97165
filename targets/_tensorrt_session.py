"""A running TensorRT engine: tensors by name, device memory of our own, one stream."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Session, TensorSpec, arrays
from edgerun.runtime.dlpack import DeviceArray
from edgerun.targets import _cuda as cuda
from edgerun.targets import _cuda_arrays as on_gpu
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets._tensorrt_jit import Kernels
from edgerun.targets._tensorrt_refit import refit


@dataclass(frozen=True)
class Sessions:
    """How sessions of an engine run: `graph` replays runs as CUDA graphs, `dla` is the core that it was built for,
    `model` the ONNX that its weights are taken from (None: it has them), `jit` where compiled kernels are kept,
    `metadata` what the file says of the model."""

    graph: bool = False
    dla: int | None = None
    model: bytes | None = None
    jit: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class TensorrtSession(Session):
    """One execution context. Feeds and places for outputs are used where they lie on the GPU, and copied from and to
    the host; other outputs are fresh arrays of the host's.

    Runs take turns. Device memory for inputs and outputs grows to the largest feeds that came. With `how.graph`, the
    second run in a row with the same shapes is captured, and those that follow are replayed as one CUDA graph.
    """

    def __init__(
        self, trt: Any, plan: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...],
        how: Sessions = Sessions(),
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs)
        self._lock, self._memory = threading.Lock(), dict[str, cuda.Memory]()
        self._metadata = how.metadata
        self._captures, self._last = how.graph, tuple[Any, ...]()
        self._graph: cuda.Graph | None = None
        self._device, self._places = cuda.Device(), dict[str, int]()
        self._door.view = functools.partial(on_gpu.seen, self._device, self._lock)
        self._kernels: Kernels | None = None
        try:
            with self._device.use():
                self._open(trt, plan, how)
        except BaseException:
            self._close()
            raise

    def _open(self, trt: Any, plan: bytes, how: Sessions) -> None:
        self._logger = tensorrt.Log(trt)
        with tensorrt.uncollected():
            self._runtime: Any = trt.Runtime(self._logger.sink)
        if how.dla is not None:
            self._runtime.DLA_core = how.dla
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EdgerunError("TensorRT refuses the engine", got=tensorrt.reason(self._logger.errors),
                               do="compile the .onnx that it was made from on this device")  # fmt: skip
        if how.model is not None:
            refit(trt, self._engine, how.model, self._logger)
        self._kernels = Kernels(trt, self._engine, plan, how.jit)
        self._context: Any = self._kernels.context
        if self._context is None:
            raise EdgerunError("TensorRT cannot run the engine", got=tensorrt.reason(self._logger.errors))
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        # An input that nothing uses may be gone: its feed is checked and goes no further.
        self._fed = [spec.name for spec in self.inputs if spec.name in names]
        self._made = [(spec.name, np.dtype(spec.dtype)) for spec in self.outputs]
        self._host = {n for n in names if self._engine.get_tensor_location(n) == trt.TensorLocation.HOST}
        self._memory = {name: cuda.Memory() for name in names - self._host}
        self._profile, self._profiles = 0, self._engine.num_optimization_profiles or 1
        if self._captures and self._host:
            what = "the engine reads or writes the host's memory, whose place a CUDA graph cannot follow"
            raise Unsupported(what, got=", ".join(sorted(self._host)), do="leave CUDA_GRAPH out")

    def kernels(self, trt: Any) -> str:
        """What the library tells of the engine's kernels, one a line."""
        with self._device.use():
            inspector = self._engine.create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.ONELINE))

    def watch(self, profiler: Any) -> None:
        """Report every kernel's time of the runs that follow to `profiler` (an IProfiler)."""
        with self._device.use():
            self._context.profiler = profiler
            self._context.enqueue_emits_profile = True

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return self._fill(feeds, {})

    def _fill(self, feeds: Mapping[str, Any], into: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock, self._device.use():
            if any(isinstance(array, DeviceArray) and array.given for array in (*feeds.values(), *into.values())):
                self._device.settle()  # whoever has a tensor on it may still be at work
            self._fit(feeds)
            living = [self._feed(name, feeds[name]) for name in self._fed]
            if wanting := list(self._context.infer_shapes()):
                raise EdgerunError("TensorRT cannot tell the shapes of its outputs", got=", ".join(wanting))
            outputs = {name: self._output(name, dtype, into.get(name)) for name, dtype in self._made}
            behind = [name for name, array in outputs.items() if self._placed(name, array)]
            self._enqueue((*(array.shape for array in living), *self._places.values()))
            for name in behind:
                array = outputs[name]
                if isinstance(array, DeviceArray):
                    self._device.move(array.address, self._places[name], array.nbytes)
                else:
                    self._device.get(array, self._memory[name])
            self._device.wait()
            del living
            return outputs

    # The profile in use goes before others; a shape that it does not take is an error in the log.
    def _fit(self, feeds: Mapping[str, Any]) -> None:
        """Tell the engine the feeds' shapes, with an optimization profile that takes them."""
        name, shape = "", ()
        for _ in range(self._profiles):
            for name in self._fed:
                if not self._context.set_input_shape(name, shape := feeds[name].shape):
                    break
            else:
                self._logger.errors.clear()
                return
            self._profile = (self._profile + 1) % self._profiles
            self._context.set_optimization_profile_async(self._profile, self._device.stream)
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        raise EdgerunError(
            f"input {name!r} is outside the sizes that the engine was compiled for", got=list(shape),
            wanted=f"between {list(least)} and {list(most)}" + ", or another of its ranges" * (self._profiles > 1),
            do="compile it with other Options(sizes=…)",
        )  # fmt: skip

    def _enqueue(self, key: tuple[Any, ...]) -> None:
        # Put the work of one run on the stream; `key` are the shapes and addresses that a graph would hold for good.
        #
        # An execution context is good for one graph at a time, so another key begins anew.
        if self._graph is not None and key == self._last:
            self._graph.launch()
            return
        again, self._last = self._captures and key == self._last, key
        self._drop()
        if again:
            try:
                self._graph = self._device.captured(self._execute)
            except EdgerunError as error:
                what = "TensorRT cannot capture this engine as a CUDA graph"
                raise Unsupported(what, got=error.got, do="leave CUDA_GRAPH out") from error
            self._graph.launch()
        else:
            self._execute()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise EdgerunError("TensorRT could not run these feeds", got=tensorrt.reason(self._logger.errors[-1:]))

    def _drop(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _feed(self, name: str, given: np.ndarray | DeviceArray) -> np.ndarray | DeviceArray:
        """Have an input on the device; the array that must live until the run is over."""
        array = given if isinstance(given, DeviceArray) else np.require(given, requirements="C")
        if self._placed(name, array):
            if isinstance(array, DeviceArray):
                self._device.move(self._places[name], array.address, array.nbytes)
            else:
                self._device.put(self._memory[name], array)
        return array

    def _placed(self, name: str, array: np.ndarray | DeviceArray) -> bool:
        # Tell the engine where it finds a tensor: in `array`, or, where that cannot be, in memory of the session's, and
        # then True.
        own = False
        if name not in self._host:
            own = not (isinstance(array, DeviceArray) and on_gpu.usable(array))
        elif isinstance(array, DeviceArray):
            what = f"{name!r} is a tensor of the host's for TensorRT"
            raise EdgerunError(what, got="memory of the GPU", wanted="an array of numpy's")
        if own:
            place = self._memory[name].hold(array.nbytes)
        else:
            place = array.address if isinstance(array, DeviceArray) else array.ctypes.data
        self._places[name] = place
        self._context.set_tensor_address(name, place)
        return own

    def _output(
        self, name: str, dtype: np.dtype[Any], given: np.ndarray | DeviceArray | None
    ) -> np.ndarray | DeviceArray:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(dim < 0 for dim in shape):
            raise Unsupported(f"the shape of {name!r} depends on the data", got=list(shape),
                              do="use another target for this model")  # fmt: skip
        if given is not None and given.shape != shape:
            raise arrays.misfit(name, shape, given.shape)
        return np.empty(shape, dtype) if given is None else given

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return cuda.page_locked(shape, dtype)

    def _empty_on_device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        return on_gpu.empty(shape, dtype)

    def _close(self) -> None:
        with self._lock, ExitStack() as stack:
            with suppress(EdgerunError):  # a device that failed has nothing left to tell
                stack.enter_context(self._device.use())
            with suppress(EdgerunError):
                self._drop()
            with suppress(EdgerunError):
                if self._kernels is not None:
                    self._kernels.keep()
            self._context = self._kernels = self._engine = self._runtime = None  # each lives in the next
            with suppress(EdgerunError):  # nor to give back
                for memory in self._memory.values():
                    memory.free()
                self._device.close()
