"""Shapes that most feeds have: OpenVINO plans memory and chooses kernels once where it knows them, else in every run.

So the graph is compiled with these shapes, and feeds of others run on the graph as it is, compiled when the first of
them comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime import Session, TensorSpec
from edgerun.targets import _openvino_cells as cells
from edgerun.targets import _openvino_ir as ir
from edgerun.targets._openvino_session import OvSession

Shapes = Mapping[str, Sequence[int]]


def known(inputs: Sequence[TensorSpec], usual: Shapes) -> dict[str, tuple[int, ...]]:
    """The shape of every input, where `usual` says all that `inputs` leave open, and something is; else {}.

    Raises EdgerunError for shapes that do not fit the door.
    """
    shapes = {spec.name: tuple(usual.get(spec.name, spec.shape)) for spec in inputs}
    if surplus := set(usual) - set(shapes):
        raise EdgerunError(f"there is no input {min(surplus)!r}", wanted=", ".join(map(str, inputs)))
    for spec in inputs:
        if not _fits(spec, shapes[spec.name]):
            got = f"{spec.name}: {list(shapes[spec.name])}"
            raise EdgerunError("the usual shapes do not fit the model", got=got, wanted=str(spec))
    found = {name: tuple(dim for dim in shape if isinstance(dim, int)) for name, shape in shapes.items()}
    told = all(found[spec.name] == shapes[spec.name] for spec in inputs)
    return found if told and any(spec.shape != found[spec.name] for spec in inputs) else {}


def _fits(spec: TensorSpec, shape: Sequence[int | str]) -> bool:
    pairs = zip(spec.shape, shape, strict=False)
    return len(spec.shape) == len(shape) and all(isinstance(want, str) or have == want for want, have in pairs)


def settled(graph: Any, shapes: Shapes) -> Any:
    """A copy of `graph` that takes these shapes alone. Raises EdgerunError where it does not take them."""
    found = graph.clone()
    places = {name: port for port in found.inputs for name in port.names}
    try:
        found.reshape({places[name]: list(shape) for name, shape in shapes.items() if name in places})
    except (RuntimeError, TypeError) as error:
        raise EdgerunError("OpenVINO cannot run the usual shapes", got=ir.reason(error)) from error
    cells.write_out(found)
    return found


class ShapedSession(Session):
    """`ready` runs feeds of `shapes`; `general` opens what runs the others, when the first of them comes."""

    def __init__(self, ready: OvSession, shapes: Shapes, general: Callable[[], OvSession]) -> None:
        super().__init__(ready.inputs, ready.outputs, ready.streams)
        self._ready, self._shapes = ready, [(name, tuple(shape)) for name, shape in shapes.items()]
        self._open, self._opening = general, threading.Lock()
        self._general: OvSession | None = None

    def _for(self, feeds: Mapping[str, np.ndarray]) -> OvSession:
        for name, shape in self._shapes:
            if feeds[name].shape != shape:
                return self._general or self._opened()
        return self._ready

    def _opened(self) -> OvSession:
        with self._opening:
            found = self._general = self._general or self._open()
        return found

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._for(feeds)._run(feeds)

    def _bind(self, feeds: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
        return self._for(feeds)._bind(feeds, out)

    def _close(self) -> None:
        self._ready.close()
        if self._general is not None:
            self._general.close()
