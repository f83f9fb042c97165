"""Shapes that most feeds have: OpenVINO plans memory and chooses kernels once where it knows them, else each run."""

# So the graph is compiled with these shapes, and feeds of others run on the graph as it is, compiled when the first of
# them comes, and compared then: on that feed, cut to the usual shapes, it must give what the kernels for these give,
# which the reference has confirmed. A feed that cannot be cut, since a length or an index in it would then point behind
# the data, is compared as it is, with kernels compiled for its shapes.

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgerun.batches import cuttable, fitted
from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import RELATIVE_ERROR, SQNR_DB, Difference
from edgerun.runtime import Options, Session, TensorSpec
from edgerun.runtime.lanes import Begun
from edgerun.targets import _openvino_cells as cells
from edgerun.targets import _openvino_ir as ir
from edgerun.targets._openvino_session import OvSession

Shapes = Mapping[str, tuple[int, ...]]
ROUNDING = frozenset({"FakeQuantize", "FakeConvert"})
SHORT = frozenset({"f16", "bf16", "i4", "u4"})  # types of constants whose readers may round


def known(inputs: Sequence[TensorSpec], usual: Shapes) -> dict[str, tuple[int, ...]]:
    """The shape of every input, where `usual` says all that `inputs` leave open, and something is; else {}.

    Raises EdgerunError for shapes that do not fit the door.
    """
    shapes = {spec.name: tuple(usual.get(spec.name, spec.shape)) for spec in inputs}
    Options(usual=usual).check(inputs)
    found = {name: tuple(dim for dim in shape if isinstance(dim, int)) for name, shape in shapes.items()}
    told = all(found[spec.name] == shapes[spec.name] for spec in inputs)
    return found if told and any(spec.shape != found[spec.name] for spec in inputs) else {}


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


def rounds(graph: Any) -> bool:
    """Whether it has steps that a tie can move."""
    for op in graph.get_ops():
        kind = op.get_type_name()
        if kind in ROUNDING or kind == "Constant" and op.get_output_element_type(0).get_type_name() in SHORT:
            return True
    return False


class ShapedSession(Session):
    """`ready` runs feeds of `shapes`; `opened` opens what runs those of given shapes, or of any ({}), when the first of
    others than `shapes` comes.

    Both must agree on what they compute: as models that have steps do where `rounds`. A run raises GateFailed where
    they do not.
    """

    def __init__(self, ready: OvSession, shapes: Shapes, opened: Callable[[Shapes], OvSession], rounds: bool) -> None:
        super().__init__(ready.inputs, ready.outputs, ready.streams)
        self._metadata = ready.metadata
        self._rounds = rounds
        self._ready, self._shapes = ready, [(name, tuple(shape)) for name, shape in shapes.items()]
        self._open, self._opening = opened, threading.Lock()
        self._general: OvSession | None = None

    def _for(self, feeds: Mapping[str, np.ndarray]) -> OvSession:
        for name, shape in self._shapes:
            if feeds[name].shape != shape:
                return self._general or self._opened(feeds)
        return self._ready

    def _opened(self, feeds: Mapping[str, np.ndarray]) -> OvSession:
        with self._opening:
            if self._general is None:
                found = self._open({})
                try:
                    self._confirm(found, feeds)
                except EdgerunError:
                    found.close()
                    raise
                self._general = found
            return self._general

    def _confirm(self, general: OvSession, feeds: Mapping[str, np.ndarray]) -> None:
        usual = dict(self._shapes)
        if cuttable(feeds, usual, self.inputs):
            self._compare(general, self._ready, fitted(feeds, usual))
            return
        with self._open({name: feeds[name].shape for name in usual}) as known:
            self._compare(general, known, feeds)

    def _compare(self, general: OvSession, known: OvSession, feeds: Mapping[str, np.ndarray]) -> None:
        got = general._run(feeds)
        for name, want in known._run(feeds).items():
            error = Difference.of(want, got[name])
            if not error.agrees(rounds=self._rounds):
                raise GateFailed(
                    f"OpenVINO computes other shapes otherwise than the usual ones: output {name!r}",
                    got=f"SQNR {error.sqnr_db:.1f} dB, relative error {error.relative_error:.2g}",
                    wanted=f"SQNR of {SQNR_DB:g} dB" if self._rounds else f"relative error {RELATIVE_ERROR:g}",
                    do="feed the usual shapes, or use another target for this model",
                )

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._for(feeds)._run(feeds)

    def _start(self, feeds: Mapping[str, np.ndarray]) -> Begun:
        return self._for(feeds)._start(feeds)

    def _bind(self, feeds: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
        return self._for(feeds)._bind(feeds, out)

    def _close(self) -> None:
        self._ready.close()
        if self._general is not None:
            self._general.close()
