"""Where does a converted model leave its source? The first value that differs, in the order of the nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.metrics import Difference
from edgerun.model import Model
from edgerun.parity import FLOOR, PLAIN
from edgerun.passes import Feeds, Runner
from edgerun.taps import Tap, Taps

if TYPE_CHECKING:
    import onnx

SHOWN = 3  # nodes that are named where several lie between agreement and difference


@dataclass(frozen=True)
class Divergence:
    """The first value that is not the source's: `node` and `operator` write it, `source` is where the source does.

    `wanted` and `got` are the source's and the model's number at `index`, where they differ most; `max_error` is in
    their unit, `relative_error` = max|e| / max|source|. `shapes` are the source's and the model's where those differ,
    and then there are no numbers (NaN). `agreeing` values before it do not differ; `between` are the
    nodes behind those that could be at fault, the last of them `node`.
    """

    node: str
    operator: str
    source: str
    index: tuple[int, ...]
    wanted: float
    got: float
    max_error: float
    relative_error: float
    agreeing: int
    between: tuple[str, ...]
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __str__(self) -> str:
        numbers = (
            f"at {list(self.index)} the source has {self.wanted:.6g}, the model {self.got:.6g} "
            f"(max abs error {self.max_error:.3g}, relative {self.relative_error:.2g})"
        )
        if self.shapes is not None:
            numbers = f"its shape is {list(self.shapes[1])}, the source's {list(self.shapes[0])}"
        text = f"first difference: node {self.node!r} ({self.operator}), {self.source}: {numbers}"
        if len(self.between) > 1:
            text += f"; the fault is in one of {len(self.between)} nodes up to it, {_few(self.between)}"
        return f"{text}; {self.agreeing} values before it agree"


def find(
    model: Model, taps: Sequence[Taps], opened: Callable[[onnx.ModelProto], Runner], feeds: Feeds
) -> Divergence | None:
    """The first value that differs from what the source computes on `feeds`; None where nothing comparable does.

    The taps are tried in their order, first for errors beyond 1e-4 (float32), then for those beyond 1e-5. `opened`
    makes a model run without optimizations, so that every value is computed as the graph says.
    """
    recorded = [recorded for tap in taps if (recorded := tap(feeds))]
    if not recorded:
        return None
    proto = model.to_proto()
    written = {name for node in proto.graph.node for name in node.output if name}
    compared = [{name: tap for name, tap in taps.items() if name in written} for taps in recorded]
    values = _values(proto, {name for taps in compared for name in taps}, opened, feeds)
    for bound in (PLAIN["float32"], FLOOR):
        for known in compared:
            if (found := _first(proto, known, values, bound)) is not None:
                return found
    return None


def _values(
    proto: onnx.ModelProto, names: set[str], opened: Callable[[onnx.ModelProto], Runner], feeds: Feeds
) -> Mapping[str, np.ndarray]:
    """What the model computes at these values: it runs with them as outputs too."""
    import onnx

    wider = onnx.ModelProto.FromString(proto.SerializeToString())
    have = {value.name for value in wider.graph.output}
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - have))
    return opened(wider)(feeds)


def _first(
    proto: onnx.ModelProto, taps: Mapping[str, Tap], values: Mapping[str, np.ndarray], bound: float
) -> Divergence | None:
    makers = {name: node for node in proto.graph.node for name in node.output}
    agreeing: set[str] = set()
    for node in proto.graph.node:
        for name in node.output:
            if (tap := taps.get(name)) is None or tap.value.ndim != np.ndim(values[name]):
                continue
            wanted, got = tap.value, np.asarray(values[name])
            index, error, relative = _largest(wanted, got)
            if relative <= max(bound, PLAIN.get(wanted.dtype.name, 0.0) if wanted.dtype.itemsize < 4 else 0.0):
                agreeing.add(name)
                continue
            same = wanted.shape == got.shape
            pair = (float(wanted[index]), float(got[index])) if same else (np.nan, np.nan)
            between = _between(node, makers, agreeing)
            return Divergence(
                node.name, node.op_type, tap.source, index, *pair, error, relative, len(agreeing), between,
                None if same else (wanted.shape, got.shape),
            )  # fmt: skip
    return None


def _largest(wanted: np.ndarray, got: np.ndarray) -> tuple[tuple[int, ...], float, float]:
    """Where arrays differ most, by how much, and relative to the largest of `wanted`. A NaN in one alone is most."""
    if wanted.shape != got.shape:
        return (), np.inf, np.inf
    found = Difference.of(wanted, got)
    one, two = wanted.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = np.where((one == two) | (np.isnan(one) & np.isnan(two)), 0.0, np.abs(one - two))
    errors = np.where(np.isnan(errors), np.inf, errors)
    place = np.unravel_index(int(errors.argmax()), wanted.shape) if errors.size else ()
    return tuple(int(i) for i in place), found.max_error, found.relative_error


def _between(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], agreeing: set[str]) -> tuple[str, ...]:
    """The node and those before it, back to values that agree, to inputs and to weights."""
    names: dict[str, None] = {}
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one.name not in names:
            names[one.name] = None
            waiting += [makers[name] for name in one.input if name in makers and name not in agreeing]
    return tuple(reversed(names))


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return f"{shown} …" if len(names) > SHOWN else shown
