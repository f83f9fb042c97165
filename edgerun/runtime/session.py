"""A running engine."""

from __future__ import annotations

import functools
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from edgerun.errors import EdgerunError, GateFailed, Unsupported, unknown
from edgerun.runtime import arrays, dtypes
from edgerun.runtime.door import Door, named
from edgerun.runtime.spec import TensorSpec, counted

if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Self  # Python 3.11; a device may have 3.10

    from edgerun.runtime.dlpack import DeviceArray
    from edgerun.runtime.lanes import Begun, Lanes
    from edgerun.runtime.memory import Bound

Outputs = dict[str, np.ndarray]
Specs = tuple[TensorSpec, ...]
Named = Iterable[tuple[str, Any]]
LARGE = 1 << 20  # bytes of outputs: to copy less takes less time than to tell a runtime of new arrays


class Session(ABC):
    """Runs feeds; a context manager. `run` may be called from several threads at once.

    **Who owns what.** Arrays that `run` returns belong to the caller: no later run writes to them. Feeds are read where
    they lie while the run lasts, so nobody may write to them meanwhile. Arrays given as `out` are the caller's too; the
    session keeps the last ones, and the feeds that came with them, until other ones come or it is closed.

    `streams` runs are under way at once, each on its share of the threads; more take turns.
    `defaults` may be fed beside `inputs`, and have a value in the model: initializers that a target lets be overridden.
    Subclasses implement `_run` and `_close`, `_bind` or `_fill` where the runtime can write into given memory, and
    `_start` where it has threads of its own; this class checks what goes in, so that no backend has to.
    """

    opens = "a model that edgerun compress made smaller, fewer streams, or a larger bound"  # what holds less memory

    def __init__(self, inputs: Specs, outputs: Specs, streams: int = 1, defaults: Specs = ()) -> None:
        self.inputs, self.outputs, self.streams, self.defaults = inputs, outputs, streams, defaults
        self._metadata: Mapping[str, str] = {}  # of a target that reads it when it opens the file
        self._closed = False
        self._rss: Bound | None = None
        self._door = Door(inputs, defaults=defaults)
        self._bound: list[_Bound] = []
        self._met: list[weakref.ref[Any]] = []  # the arrays of the last run that was not bound before
        self._lanes: Lanes | None = None
        self._starting = threading.Lock()

    def loosen(self) -> None:
        """Take feeds that differ in size where a dimension has one name, as ONNX Runtime does: some exporters write one
        name for what is not the same. What it means is the runtime's to say, as it is of objects that are no texts."""
        self._door.loosen()

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the model's file says of itself, under ONNX's names: `edgerun.preprocessing`, and keys of others."""
        return self._metadata

    @abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> Outputs: ...

    @abstractmethod
    def _close(self) -> None:
        """Release what the backend holds."""

    def _bind(self, feeds: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
        """A call that reads exactly these arrays and fills exactly those, one for every output; None: cannot."""
        return None

    def _fill(self, feeds: Mapping[str, np.ndarray], into: Mapping[str, Any]) -> Outputs:
        """As `_run`, the outputs of `into` written there."""
        return copied(self._run(feeds), into)

    def _start(self, feeds: Mapping[str, np.ndarray]) -> Begun:
        """Begin a run of checked feeds: on a thread of the session's, unless the runtime has its own."""
        return self._started().submit(functools.partial(self._run, feeds), limited=False)

    def run(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None) -> Outputs:
        """Outputs by name. A feed is an array, a numpy scalar, or any object with `__dlpack__` in host memory, on
        TensorRT in the GPU's as well.

        `out` names arrays that outputs are written into (C-contiguous, of the right dtype and shape); the same arrays
        again cost the least. A sequence is a list of arrays, an absent optional None.
        Raises EdgerunError for a missing or surplus input, a wrong dtype or a wrong shape, and for inputs of different
        sizes in a dimension that has one name (`loosen`); GateFailed where memory went above its bound.
        """
        self._check_open()
        if self._rss is None:
            return self._ran(feeds, out)
        self._rss.begin()
        outputs = self._ran(feeds, out)
        self._rss.require("in a run", f"smaller feeds, {self.opens}")
        return outputs

    def _ran(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None) -> Outputs:
        if out is None:
            return self._run(self._door.taken(feeds))
        named(feeds, "feeds")
        named(out, "out")
        try:
            bound = self._bound.pop()
        except IndexError:
            bound = None
        if bound is None or not bound.takes(feeds, out):
            bound = self._newly_bound(feeds, out)
        result = bound.call()
        if bound.kept and not self._closed:
            self._bound = [bound]
        return result

    def run_async(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None) -> Future[Outputs]:
        """A Future of `run`. Waits while two runs a stream are in flight, so that no queue grows."""
        return self.submit(lambda: self.run(feeds, out))

    def submit(self, call: Callable[[], Outputs]) -> Future[Outputs]:
        """A Future of `call`, which runs this session. Waits as `run_async` does."""
        return self._started().submit(call)

    def stream(self, feeds: Iterable[Mapping[str, Any]], in_flight: int | None = None) -> Iterator[Outputs]:
        """Outputs of every feed, in order. At most `in_flight` (two a stream) are taken from `feeds` ahead of the
        results that were asked for; the first error ends it, at its place."""
        most = 2 * self.streams if in_flight is None else in_flight
        if not counted(most, 1):
            raise EdgerunError("nothing can be in flight", got=in_flight, wanted="1 or more")
        self._check_open()
        waiting: deque[Begun] = deque()
        try:
            for feed in feeds:
                waiting.append(self._begun(feed))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for begun in waiting:
                begun.cancel()

    def _begun(self, feeds: Mapping[str, Any]) -> Begun:
        """A run under way; what is wrong with it is told when its outputs are asked for."""
        from edgerun.runtime.lanes import Refused

        try:
            self._check_open()
            if self._rss is None:
                return self._start(self._door.taken(feeds))
            return self._started().submit(functools.partial(self.run, feeds), limited=False)  # and measured
        except EdgerunError as error:
            return Refused(error)

    @overload
    def empty(self, name: str, shape: Sequence[int], device: Literal[False] = False) -> np.ndarray: ...

    @overload
    def empty(self, name: str, shape: Sequence[int], device: Literal[True]) -> DeviceArray: ...

    def empty(self, name: str, shape: Sequence[int], device: bool = False) -> np.ndarray | DeviceArray:
        """An array for the input or output `name`, not initialized, in the memory that the runtime reaches fastest:
        page-locked where it runs on a GPU of NVIDIA's, shared where it runs in a process of its own, which then reads
        this very array. With `device` it is the GPU's own memory, as an object that `torch.from_dlpack` and its like
        take; nothing is copied. Raises EdgerunError for a name or a shape that there is none of, Unsupported where the
        target uses no memory but the host's.
        """
        self._check_open()
        spec = next((spec for spec in (*self.inputs, *self.outputs) if spec.name == name), None)
        if spec is None or spec.kind != "tensor":
            raise unknown("tensor", str(name), (s.name for s in (*self.inputs, *self.outputs) if s.kind == "tensor"))
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not all(map(counted, shape)):
            raise EdgerunError(f"an array for {name!r} has no size below 0", got=list(shape), wanted=str(spec))
        spec.check(np.broadcast_to(np.empty((), dtypes.dtype(spec.dtype)), shape), "input or output")
        return (self._empty_on_device if device else self._empty)(shape, dtypes.dtype(spec.dtype))

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return np.empty(shape, dtype)

    def _empty_on_device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        raise Unsupported("this target uses the host's memory alone", got="device=True", do="leave `device` out")

    def warm_up(self, runs: int = 1, sizes: Mapping[str, int] | None = None) -> None:
        """Run zeros (or empty strings) `runs` times in every stream, open dimensions by `sizes` or 1.

        The first run allocates and plans: afterwards the first real one is as fast as the rest. Raises EdgerunError
        where the model refuses zeros, and for a size of a dimension that no input has.
        """
        if least := [repr(size) for size in (runs, *(sizes or {}).values()) if not counted(size)]:
            raise EdgerunError("runs and sizes are counted from 0", got=least[0])
        known = {dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str)}
        if surplus := set(sizes or ()) - known:
            raise unknown("open dimension", min(surplus), known)
        feeds = {spec.name: _zeros(spec, sizes or {}) for spec in self.inputs}
        started = self._started()
        for future in [started.submit(lambda: self.run(feeds), limited=False) for _ in range(runs * self.streams)]:
            future.result()

    def within(self, bound: Bound) -> Self:
        """Hold every run from now on to `bound`. Raises GateFailed, the session closed, where opening it went above."""
        try:
            bound.require("when it opened the model", self.opens)
        except GateFailed:
            self.close()
            raise
        self._rss = bound
        return self

    def close(self) -> None:
        """Let runs in flight end, then end the session and free its memory; a later run raises EdgerunError."""
        with self._starting:
            lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.close()
        if not self._closed:
            self._closed = True
            self._bound = []
            self._close()

    def _newly_bound(self, feeds: Mapping[str, Any], out: Mapping[str, Any]) -> _Bound:
        checked = self._door.taken(feeds)
        into = arrays.places(self.outputs, out, checked, self._door.view)
        # What is no array of numpy's may lie elsewhere the next time.
        own = [*feeds.values(), *out.values()]
        kept = all(type(value) is np.ndarray for value in own)
        before, self._met = self._met, [weakref.ref(value) for value in own] if kept else []
        again = kept and len(before) == len(own) and all(met() is value for met, value in zip(before, own, strict=True))
        pays = again or sum(array.nbytes for array in into.values()) > LARGE
        direct = len(into) == len(self.outputs) and all(map(arrays.in_place, (*checked.values(), *into.values())))
        call = self._bind(checked, into) if pays and direct else None
        if call is None:
            return _Bound((), (), lambda: {**self._fill(checked, into), **{name: out[name] for name in into}})
        given = [(name, feeds[name]) for name in checked], [(s.name, out[s.name]) for s in self.outputs]
        return _Bound(*given, lambda: call() or dict(given[1]), kept=kept)

    def _started(self) -> Lanes:
        from edgerun.runtime.lanes import Lanes  # half of what importing this package would take

        with self._starting:
            self._check_open()
            if self._lanes is None:
                self._lanes = Lanes(self.streams)
            return self._lanes

    def _check_open(self) -> None:
        if self._closed:
            raise EdgerunError("the session is closed", do="load the engine again")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Bound:
    """A run whose arrays are known: `kept` says that it may be called again for the very same ones."""

    __slots__ = ("call", "inputs", "kept", "outputs")

    def __init__(self, inputs: Named, outputs: Named, call: Callable[[], Outputs], *, kept: bool = False) -> None:
        self.inputs = tuple((name, array, getattr(array, "shape", None)) for name, array in inputs)
        self.outputs, self.call, self.kept = tuple(outputs), call, kept

    def takes(self, feeds: Mapping[str, Any], out: Mapping[str, Any]) -> bool:
        if len(feeds) != len(self.inputs) or len(out) != len(self.outputs):
            return False
        for name, array, shape in self.inputs:  # which may have been changed where it is
            if array.shape != shape or feeds.get(name) is not array:
                return False
        for name, array in self.outputs:
            if out.get(name) is not array:
                return False
        return True


def copied(results: Outputs, into: Mapping[str, np.ndarray]) -> Outputs:
    """`results`, those of `into` copied there."""
    for name, place in into.items():
        if place.shape != results[name].shape:
            raise arrays.misfit(name, results[name].shape, place.shape)
        np.copyto(place, results[name])
    return results


def _zeros(spec: TensorSpec, sizes: Mapping[str, int]) -> Any:
    if spec.kind != "tensor":
        return None if "optional" in spec.kind else []
    return np.full(spec.with_dims(sizes), "" if spec.dtype == "object" else 0, dtypes.dtype(spec.dtype))
