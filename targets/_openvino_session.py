"""A running OpenVINO model: as many infer requests as streams, tensors shared with the caller."""

from __future__ import annotations

import contextlib
import ctypes
import queue
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Session, TensorSpec, dtypes
from edgerun.runtime.lanes import Begun
from edgerun.targets import _openvino_ir as ir


class OvSession(Session):
    """Inputs are shared with the caller for the time of a run; outputs are copied out of the request's buffers, or
    written into the caller's."""

    def __init__(
        self, compiled: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], streams: int = 1,
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs, streams)
        self._metadata = metadata
        self._tensor = ir.runtime().Tensor
        self._compiled: Any = compiled
        self._last: Any = None
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self.spare: list[_Request] = []  # for runs that are begun, beside those
        self.under_way: set[_Run] = set()
        for _ in range(streams):
            self._last = compiled.create_infer_request()
            self._requests.put(_Request(self._last))
        kept = _places(compiled.inputs, inputs)
        # OpenVINO drops inputs that nothing uses: their feeds are checked and go no further.
        self._feeds = [(kept[spec.name], spec.name) for spec in inputs if spec.name in kept]
        self._types = {s.name: compiled.inputs[kept[s.name]].element_type for s in inputs if s.name in kept}
        self._types = {name: kind for name, kind in self._types.items() if kind.get_type_name() in ir.NARROW}
        ports = [port.element_type.get_type_name() in ir.NARROW for port in compiled.outputs]
        made = {name: index for index, port in enumerate(compiled.outputs) for name in port.names}
        self._results = [(made.get(s.name, i), s.name, dtypes.dtype(s.dtype)) for i, s in enumerate(outputs)]
        self._packed = {name for index, name, _ in self._results if ports[index]}

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request, shared = self._requests.get(), list[np.ndarray]()
        if request is None:  # closed while this run waited for its turn
            self._requests.put(None)
            raise EdgerunError("the session is closed", do="load the engine again")
        try:
            self.give(request, feeds, shared)
            made = tuple(request.own.infer(None, share_outputs=True).values())  # views of the request's buffers
            if self._packed:
                return self.outputs_of(request)
            return {name: np.array(made[i], dtype) for i, name, dtype in self._results}
        except RuntimeError as error:
            raise _failed(error) from error
        finally:
            self._requests.put(request)

    def _start(self, feeds: Mapping[str, np.ndarray]) -> Begun:
        return _Run(self, feeds)

    def request(self) -> _Request:
        """One for a run that is begun."""
        try:
            return self.spare.pop()
        except IndexError:
            return _Request(self._compiled.create_infer_request())

    def give(self, request: _Request, feeds: Mapping[str, np.ndarray], shared: list[np.ndarray]) -> None:
        """Let a request read the feeds where they lie: in arrays that join `shared`, and must live while it runs.

        It is told of a place when that is another than the last time: memory is planned around it.
        """
        for index, name in self._feeds:
            array = feeds[name]
            if not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            shared.append(array)
            place = (array.__array_interface__["data"][0], array.shape) if name not in self._types else None
            if place is None or request.places.get(index) != place:
                request.places.pop(index, None)
                request.own.set_input_tensor(index, self._shared(name, array))
                if place is not None:
                    request.places[index] = place

    def outputs_of(self, request: _Request) -> dict[str, np.ndarray]:
        """Copies of what a request computed."""
        return {name: self._unpacked(request.own, i, name, dtype) for i, name, dtype in self._results}

    def _bind(self, feeds: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
        places = [(index, out[name]) for index, name, _ in self._results]
        ports = self._compiled.outputs
        if (
            self._packed
            or len({index for index, _ in places}) < len(places)
            or any(np.dtype(ports[index].element_type.to_dtype()) != array.dtype for index, array in places)
        ):
            return None  # the plugin's own type is another, or two outputs are one tensor there
        request = self._compiled.create_infer_request()
        try:
            for index, name in self._feeds:
                request.set_input_tensor(index, self._shared(name, feeds[name]))
            for index, array in places:
                request.set_output_tensor(index, self._tensor(array, shared_memory=True))
        except RuntimeError as error:
            raise EdgerunError("OpenVINO cannot write there", got=ir.reason(error)) from error
        open_shapes = [(index, array) for index, array in places if ports[index].partial_shape.is_dynamic]

        def call(living: object = feeds) -> None:
            try:
                made = tuple(request.infer(None, share_outputs=True).values())  # views of the caller's arrays
            except RuntimeError as error:
                raise _failed(error) from error
            for index, array in open_shapes:
                if made[index].shape != array.shape:
                    what = f"output {self.outputs[index].name!r} has another shape than its place"
                    raise EdgerunError(what, got=list(made[index].shape), wanted=str(list(array.shape)))

        return call

    def _shared(self, name: str, array: np.ndarray) -> Any:
        """A tensor on the array's own memory; read-only memory too, which OpenVINO would copy: it only reads inputs."""
        if name in self._types:
            data = dtypes.packed(array, dtypes.NARROW[array.dtype.name])
            return self._tensor(data, list(array.shape), self._types[name])
        if not array.nbytes:
            array = np.empty(array.shape, array.dtype)  # nothing to share, and the given one may be read-only
        elif not array.flags.writeable:
            memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
            array = np.frombuffer(memoryview(memory), array.dtype).reshape(array.shape)
        return self._tensor(array, shared_memory=True)

    def _unpacked(self, request: Any, index: int, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        tensor = request.get_output_tensor(index)
        if name not in self._packed:
            return np.array(tensor.data, dtype)
        data = np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)
        return dtypes.unpacked(data, dtype.name, tuple(tensor.shape))

    def kernels(self) -> Iterator[Any]:
        """The counters of the kernels that the last run executed: means over all runs so far."""
        return (kernel for kernel in self._last.profiling_info if kernel.status.name == "EXECUTED")

    def _close(self) -> None:
        for _ in range(self.streams):
            self._requests.get()  # a run in flight gives its request back first
        self._requests.put(None)
        for run in tuple(self.under_way):
            run.wait()
        self._last = self._compiled = None
        self.spare.clear()


class _Request:
    """One of OpenVINO's, and the address and shape of each input that it was told of last."""

    def __init__(self, own: Any) -> None:
        self.own, self.places = own, dict[int, object]()


class _Run:
    """A run that OpenVINO was handed, and does on a thread of its own when its turn comes: more of them than streams,
    so that none waits for Python."""

    def __init__(self, session: OvSession, feeds: Mapping[str, np.ndarray]) -> None:
        self._session, self._request, self._shared = session, session.request(), list[np.ndarray]()
        try:
            session.give(self._request, feeds, self._shared)
            self._request.own.start_async(None)
        except RuntimeError as error:
            raise _failed(error) from error
        session.under_way.add(self)

    def wait(self) -> None:
        """Until it ended, however."""
        with contextlib.suppress(RuntimeError):
            self._request.own.wait()

    def result(self) -> dict[str, np.ndarray]:
        try:
            self._request.own.wait()
            return self._session.outputs_of(self._request)
        except RuntimeError as error:
            raise _failed(error) from error
        finally:
            self._ended()

    def cancel(self) -> None:
        """It reads the caller's arrays, and so it has to end first."""
        self.wait()
        self._ended()

    def _ended(self) -> None:
        self._session.under_way.discard(self)
        self._session.spare.append(self._request)


def _failed(error: RuntimeError) -> EdgerunError:
    return EdgerunError("OpenVINO could not run these feeds", got=ir.reason(error))


def _places(ports: Any, specs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """The port of each input that is used. The frontend may put an output's name in the place of an input's (Dropout):
    then it is the only one of its dtype and rank that is left. Raises Unsupported where that cannot be told."""
    names = {name: index for index, port in enumerate(ports) for name in port.names}
    found = {spec.name: names[spec.name] for spec in specs if spec.name in names}
    for index in set(range(len(ports))) - set(found.values()):
        own = ir.port(ports[index])
        like = [s for s in specs if s.name not in found and (s.dtype, len(s.shape)) == (own.dtype, len(own.shape))]
        if len(like) != 1:
            raise Unsupported("OpenVINO has lost the name of an input", got=str(own), do="use another target")
        found[like[0].name] = index
    return found
