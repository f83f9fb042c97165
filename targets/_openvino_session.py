"""A running OpenVINO model: as many infer requests as streams, tensors shared with the caller."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Session, TensorSpec, dtypes
from edgerun.runtime.lanes import Begun
from edgerun.targets import _openvino_ir as ir
from edgerun.targets._openvino_compiled import Compiled, Renewed, Request

LEAST, MOST = -(2**31), 2**31 - 1  # of an int64


class OvSession(Session):
    """Inputs are shared with the caller for the time of a run; outputs are copied out of the request's buffers, or
    written into the caller's."""

    def __init__(
        self, compile: Callable[[], Any], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...],
        streams: int | None = 1, metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """`compile` gives OpenVINO's compiled model, again after every run that fails; `streams` None is as many as it
        finds best."""
        self._renewed = Renewed(compile, streams)
        super().__init__(inputs, outputs, self._renewed.streams)
        self._metadata = metadata
        self._tensor = ir.runtime().Tensor
        compiled = self.compiled
        kept = _places(compiled.inputs, inputs)
        # OpenVINO drops inputs that nothing uses: their feeds are checked and go no further.
        self._feeds = [(kept[spec.name], spec.name) for spec in inputs if spec.name in kept]
        self._types = {s.name: compiled.inputs[kept[s.name]].element_type for s in inputs if s.name in kept}
        self._types = {name: kind for name, kind in self._types.items() if kind.get_type_name() in ir.NARROW}
        ports = [port.element_type.get_type_name() in ir.NARROW for port in compiled.outputs]
        made = {name: index for index, port in enumerate(compiled.outputs) for name in port.names}
        self._results = [(made.get(s.name, i), s.name, dtypes.dtype(s.dtype)) for i, s in enumerate(outputs)]
        self._packed = {name for index, name, _ in self._results if ports[index]}
        self._longs = [s.name for s in inputs if s.dtype == "int64"]
        self._wide = {s.name for s in inputs if s.dtype == "float64"}
        # A short list of integers may say a shape, which is then another with every value.
        self._by_value = [s.name for s in inputs if len(s.shape) < 2 and s.dtype.startswith(("int", "uint"))]

    @property
    def compiled(self) -> Any:
        """OpenVINO's compiled model."""
        return self._renewed.now().own

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        like = self._like(feeds)
        while True:
            compiled = self._renewed.now()
            outputs = self._known(compiled, feeds) if like in compiled.known else self._alone(compiled, feeds, like)
            if outputs is not None:
                return outputs

    def _like(self, feeds: Mapping[str, np.ndarray]) -> Hashable:
        # What decides whether feeds run: their shapes, and the values that may say a shape. Raises EdgerunError for
        # integers that OpenVINO would cut to 32 bits without a word.
        for name in self._longs:
            if (array := feeds[name]).size and not (LEAST <= array.min() and array.max() <= MOST):
                raise EdgerunError(
                    f"OpenVINO computes in 32 bits, and input {name!r} has more", got=f"{array.min()} to {array.max()}",
                    wanted=f"int64 from {LEAST} to {MOST}", do="use the target onnxruntime",
                )  # fmt: skip
        shapes = tuple([feeds[name].shape for _, name in self._feeds])
        return (shapes, *[feeds[name].tobytes() for name in self._by_value]) if self._by_value else shapes

    def _known(self, compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """The outputs; None where a run failed on these kernels meanwhile."""
        request, shared = compiled.take(), list[np.ndarray]()
        try:
            if compiled.failed:
                return None
            self.give(request, feeds, shared)
            made = request.own.infer(None, share_outputs=True)
            if self._packed:
                return self.outputs_of(request)
            views = tuple(made.values())  # of the request's buffers
            return {name: np.array(views[i], dtype) for i, name, dtype in self._results}
        except RuntimeError as error:
            raise _failed(compiled, error) from error
        finally:
            compiled.idle.put(request)

    def _alone(
        self, compiled: Compiled, feeds: Mapping[str, np.ndarray], like: Hashable
    ) -> dict[str, np.ndarray] | None:
        shared = list[np.ndarray]()
        with compiled.alone() as request:
            if compiled.failed:
                return None
            self.give(request, feeds, shared)
            _watched(compiled, request.own)
            compiled.learn(like)
            return self.outputs_of(request)

    def _start(self, feeds: Mapping[str, np.ndarray]) -> Begun:
        like = self._like(feeds)
        while like in (compiled := self._renewed.now()).known:
            with compiled.gate:
                if not compiled.failed:
                    return _Run(self, compiled, feeds)
        return super()._start(feeds)

    def give(self, request: Request, feeds: Mapping[str, np.ndarray], shared: list[np.ndarray]) -> None:
        """Let a request read the feeds where they lie: in arrays that join `shared`, and must live while it runs.

        It is told of a place when that is another than the last time: memory is planned around it. Raises EdgerunError
        where OpenVINO takes no such shape.
        """
        for index, name in self._feeds:
            # Of float64, numpy warns of what there is no float32 for, which is infinite then.
            array = feeds[name].astype(np.float32) if name in self._wide else feeds[name]
            if not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            shared.append(array)
            place = (array.__array_interface__["data"][0], array.shape) if name not in self._types else None
            if place is None or request.places.get(index) != place:
                request.places.pop(index, None)
                try:
                    request.own.set_input_tensor(index, self._shared(name, array))
                except RuntimeError as error:
                    raise _refused(error) from error
                if place is not None:
                    request.places[index] = place

    def outputs_of(self, request: Request) -> dict[str, np.ndarray]:
        """Copies of what a request computed."""
        return {name: self._unpacked(request.own, i, name, dtype) for i, name, dtype in self._results}

    def _bind(self, feeds: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
        places = [(index, out[name]) for index, name, _ in self._results]
        ports = self.compiled.outputs
        if (
            self._packed
            or self._wide
            or len({index for index, _ in places}) < len(places)
            or any(np.dtype(ports[index].element_type.to_dtype()) != array.dtype for index, array in places)
        ):
            return None  # the plugin's own type is another, or two outputs are one tensor there
        compiled, like = self._renewed.now(), self._like(feeds)
        bound: Any = None
        open_shapes = [(index, array) for index, array in places if ports[index].partial_shape.is_dynamic]

        def known() -> tuple[Any, ...] | None:
            request = compiled.take()  # it stays idle: the bound one has its turn
            try:
                return None if compiled.failed else tuple(bound.infer(None, share_outputs=True).values())
            except RuntimeError as error:
                raise _failed(compiled, error) from error
            finally:
                compiled.idle.put(request)

        def alone() -> tuple[Any, ...] | None:
            with compiled.alone():
                if compiled.failed:
                    return None
                _watched(compiled, bound)
                compiled.learn(like)
                return tuple([bound.get_output_tensor(index).data for index in range(len(ports))])

        def call() -> None:
            nonlocal compiled, bound, like
            made: tuple[Any, ...] | None = None  # views of the caller's arrays
            while made is None:
                if bound is None or compiled.failed:
                    compiled = self._renewed.now()
                    bound = self._bound_request(compiled, feeds, places)
                if self._by_value or self._longs:
                    like = self._like(feeds)
                made = known() if like in compiled.known else alone()
            for index, array in open_shapes:
                if made[index].shape != array.shape:
                    what = f"output {self.outputs[index].name!r} has another shape than its place"
                    raise EdgerunError(what, got=list(made[index].shape), wanted=str(list(array.shape)))

        return call

    def _bound_request(
        self, compiled: Compiled, feeds: Mapping[str, np.ndarray], places: Iterable[tuple[int, np.ndarray]]
    ) -> Any:
        request = compiled.own.create_infer_request()
        try:
            for index, name in self._feeds:
                request.set_input_tensor(index, self._shared(name, feeds[name]))
            for index, array in places:
                request.set_output_tensor(index, self._tensor(array, shared_memory=True))
        except RuntimeError as error:
            raise EdgerunError("OpenVINO cannot write there", got=ir.reason(error)) from error
        return request

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
        """The counters of the kernels that the last run executed: means over all runs so far, rounded down to whole
        microseconds. OpenVINO says of one whose mean is 0 that it did not run, but not that nothing implements it."""
        for kernel in self._renewed.now().last.profiling_info:
            silent = kernel.exec_type.startswith(("undef", "unknown")) or kernel.node_type in ("Parameter", "Result")
            if kernel.status.name == "EXECUTED" or not silent:
                yield kernel

    def _close(self) -> None:
        self._renewed.close()


class _Run:
    """A run that OpenVINO was handed, and does on a thread of its own when its turn comes: more of them than streams,
    so that none waits for Python."""

    def __init__(self, session: OvSession, compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> None:
        self._session, self._compiled = session, compiled
        self._request, self._shared = compiled.request(), list[np.ndarray]()
        session.give(self._request, feeds, self._shared)
        try:
            self._request.own.start_async(None)
        except RuntimeError as error:
            raise _failed(compiled, error) from error
        compiled.begun.add(self)

    def wait(self) -> None:
        """Until it ended, however."""
        with contextlib.suppress(RuntimeError):
            self._request.own.wait()

    def result(self) -> dict[str, np.ndarray]:
        try:
            self._request.own.wait()
            return self._session.outputs_of(self._request)
        except RuntimeError as error:
            raise _failed(self._compiled, error) from error
        finally:
            self._ended()

    def cancel(self) -> None:
        """It reads the caller's arrays, and so it has to end first."""
        self.wait()
        self._ended()

    def _ended(self) -> None:
        self._compiled.begun.discard(self)
        self._compiled.spare.append(self._request)


def _watched(compiled: Compiled, request: Any) -> None:
    # Infer, and raise EdgerunError where that fails: with one thread `infer` says nothing of it, and the request keeps
    # the outputs of the run before (2026.4). Some 5 µs more, and so for the first feeds of a kind alone.
    try:
        request.start_async(None)
        request.wait()
    except RuntimeError as error:
        raise _failed(compiled, error) from error


def _failed(compiled: Compiled, error: RuntimeError) -> EdgerunError:
    """What to raise where a run failed; nothing runs on these kernels any more."""
    compiled.failed = True
    return _refused(error)


def _refused(error: RuntimeError) -> EdgerunError:
    return EdgerunError("OpenVINO could not run these feeds", got=ir.reason(error))


def _places(ports: Any, specs: tuple[TensorSpec, ...]) -> dict[str, int]:
    # The port of each input that is used. The frontend may put an output's name in the place of an input's (Dropout):
    # then it is the only one of its dtype and rank that is left. Raises Unsupported where that cannot be told.
    names = {name: index for index, port in enumerate(ports) for name in port.names}
    found = {spec.name: names[spec.name] for spec in specs if spec.name in names}
    for index in set(range(len(ports))) - set(found.values()):
        own = ir.port(ports[index])
        like = [s for s in specs if s.name not in found and (s.dtype, len(s.shape)) == (own.dtype, len(own.shape))]
        if len(like) != 1:
            raise Unsupported("OpenVINO has lost the name of an input", got=str(own), do="use another target")
        found[like[0].name] = index
    return found
