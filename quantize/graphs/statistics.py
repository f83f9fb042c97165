"""Activation statistics, streamed: exact extremes per channel of what is run, and an even sample of its beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.quantize.graphs import recurrent
from edgerun.quantize.graphs.activation import Activation, Channels, Vectors
from edgerun.quantize.graphs.edit import constant, initializer
from edgerun.quantize.graphs.windows import Window

if TYPE_CHECKING:
    import onnx_ir as ir

PREFIX = "edgerun/probe/"
SHORT = (2.0**-4, 2.0**15)  # peaks that float16 holds, a hundred times as fine as a code's step, with half the memory
KINDS = ("low", "high", "squares", "sample", "shape", "vectors")
STATE = ("sample", "owner", "low", "high", "squares", "held", "size", "lows", "highs", "vectors", "taken", "told")
PARTS = 8  # of the data, whose extremes are kept apart: what a part reaches that no other did, new data does too
APART = 4  # every fourth batch judges what was fitted to the others; PARTS is a multiple
SAMPLED = 8  # of these others, as many as a mean needs
NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Abs", "Sqrt", "HardSigmoid"})
KEEPS_SIGN = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Transpose"})


class Watch:
    """Grows probes on clones of a float model, and folds what they tell into one Activation per value.

    `full` graphs tell everything and keep the model's outputs; the others tell extremes alone, at a third of the cost.
    Memory: a few numbers per channel and batch, and of each activation and full batch `per_batch` sampled values and,
    of those that `vectors` names, what a layer reads at some places.
    """

    def __init__(
        self, model: ir.Model, names: Sequence[str], per_batch: int, vectors: Mapping[str, Window] | None = None
    ) -> None:
        self._model, self._per_batch = model, per_batch
        values = {v.name: v for v in [*model.graph.inputs, *(o for node in model.graph for o in node.outputs)]}
        self._seen = {name: _Seen(values[name], per_batch, (vectors or {}).get(name)) for name in names}

    def graph(self, full: bool, outputs: bool = False) -> ir.Model:
        """A clone of the model with the probes that `add` reads, and its own `outputs` or not, where it is not full."""
        probes = _Probes(self._model, keep_outputs=full or outputs)
        for name, seen in self._seen.items():
            value, own = probes.values[name], PREFIX + name
            probes.extremes(value, seen, own)
            if full:
                probes.reduce("ReduceSumSquare", value, seen.rest, f"{own}/squares")
                probes.sample(value, own, self._per_batch)
                if seen.window is not None:
                    probes.vectors(value, own, seen)
        return probes.model

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Fold in what one run told."""
        for name, seen in self._seen.items():
            keys = {kind: f"{PREFIX}{name}/{kind}" for kind in KINDS}
            seen.add({kind: outputs[key] for kind, key in keys.items() if key in outputs})

    def extremes(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest value in every batch so far, `[batches, values]` each."""
        ends = ([self._seen[name].lows for name in names], [self._seen[name].highs for name in names])
        return np.array(ends[0]).T, np.array(ends[1]).T

    def state(self) -> dict[str, np.ndarray]:
        """All that was folded in so far, as arrays that `restore` takes."""
        return {f"{name}/{kind}": array for name, seen in self._seen.items() for kind, array in seen.state().items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Be as the one was whose `state` this is, of the same model, names and `per_batch`."""
        for name, seen in self._seen.items():
            seen.restore({kind: state[f"{name}/{kind}"] for kind in STATE})

    def activations(self, *, fit: bool = False) -> dict[str, Activation]:
        """What was seen, by value name; `fit`: on the batches that are not kept APART, of which there is one at least,
        told in full."""
        return {name: seen.fit() if fit else seen.activation() for name, seen in self._seen.items()}


def _short(vectors: np.ndarray) -> np.ndarray:
    """In float16 where their range allows."""
    least, most = SHORT
    return vectors.astype(np.float16) if least <= max(vectors.max(), -vectors.min()) <= most else vectors


class _Seen:
    """What was seen so far of one value."""

    def __init__(self, value: ir.Value, per_batch: int, window: Window | None) -> None:
        rank, self._per_batch = len(value.shape or ()), per_batch
        self.axis = _channel_axis(value)
        self.rest = [i for i in range(rank) if i != self.axis] if self.axis is not None else None
        # Runtimes pool in their own blocked layout; a reduction would first have to leave it.
        self.pooled = rank == 4 and self.axis == 1
        self.never_negative = _never_negative(value)
        self._low, self._high = (
            np.full((PARTS, 1), 0.0 if self.never_negative else np.inf),
            np.full((PARTS, 1), -np.inf),
        )
        self._squares, self._size, self._told = np.array(0.0), 0.0, 0  # batches told in full
        self._held, self._held_size = np.array(0.0), 0.0  # squares and elements of those kept apart
        self._samples: list[np.ndarray] = []
        self._owners: list[np.ndarray] = []
        self._owned: tuple[tuple[int, ...], np.ndarray] | None = None  # the owners of the last shape
        shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
        fits = window is not None and self.axis is not None and (not window.sizes or self.axis == 1)
        self.window = window if fits else None
        self.indices = self.window.indices(shape) if self.window is not None else None
        self._vectors: list[np.ndarray] = []
        self.lows: list[float] = []
        self.highs: list[float] = []

    def add(self, told: Mapping[str, np.ndarray]) -> None:
        high = told["high"].max(axis=0).reshape(-1) if self.pooled else told["high"]
        low = told.get("low", np.zeros_like(high))
        self._widen(np.asarray(low, np.float64).reshape(-1), np.asarray(high, np.float64).reshape(-1))
        self.lows.append(float(low.min()))
        self.highs.append(float(high.max()))
        if "sample" in told:
            shape = told["shape"]
            squares = told["squares"].astype(np.float64)
            self._squares = np.asarray(self._squares + squares)
            if self._told % APART == APART - 1:
                self._held, self._held_size = np.asarray(self._held + squares), self._held_size + float(np.prod(shape))
            self._size, self._told = self._size + float(np.prod(shape)), self._told + 1
            self._samples.append(np.array(told["sample"]))
            if self._owned is None or self._owned[0] != tuple(shape):  # batches are alike, and most share one array
                self._owned = tuple(shape), self._owner(told["sample"].size, shape)
            self._owners.append(self._owned[1])
        if "vectors" in told:
            assert self.window is not None and self.axis is not None
            taken = self.window.vectors(told["vectors"], self.axis, cut=self.indices)
            self._vectors += [_short(taken)] if len(taken) else []

    def _widen(self, low: np.ndarray, high: np.ndarray) -> None:
        """Batches go to the parts in turn."""
        if self._high.shape[1] != len(high):
            self._low, self._high = (np.repeat(end, len(high), axis=1) for end in (self._low, self._high))
        part = len(self.highs) % PARTS
        self._low[part], self._high[part] = np.minimum(self._low[part], low), np.maximum(self._high[part], high)

    def state(self) -> dict[str, np.ndarray]:
        whole = (np.concatenate(a) for a in (self._samples, self._owners))
        size, held = np.array([self._size, self._told, self._held_size]), np.asarray(self._held)
        ends = (self._low, self._high, self._squares, held, size, np.array(self.lows), np.array(self.highs))
        taken = np.array([len(batch) for batch in self._vectors], np.int64)
        kept = np.concatenate(self._vectors) if self._vectors else np.zeros((0, 0), np.float32)
        told = np.array([batch.size for batch in self._samples], np.int64)
        return dict(zip(STATE, (*whole, *ends, kept, taken, told), strict=True))

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        samples, owners, low, high, self._squares, self._held, *rest = (state[kind] for kind in STATE)
        size, lows, highs, kept, taken, told = rest
        self._low, self._high = low.copy(), high.copy()
        self._samples, self._owners = (np.split(whole, np.cumsum(told)[:-1]) for whole in (samples, owners))
        self._size, self._told, self._held_size = float(size[0]), int(size[1]), float(size[2])
        self.lows, self.highs = lows.tolist(), highs.tolist()
        self._vectors = [part.copy() for part in np.split(kept, np.cumsum(taken)[:-1])] if len(taken) else []

    def _owner(self, count: int, shape: np.ndarray) -> np.ndarray:
        """The channel of each sampled value, from its place in the tensor of `shape`."""
        if self.axis is None:
            return np.zeros(count, np.uint8)
        places = np.arange(count, dtype=np.int64) * _stride(int(np.prod(shape)), self._per_batch)
        channel: np.ndarray = places // int(np.prod(shape[self.axis + 1 :])) % int(shape[self.axis])
        return channel.astype(np.min_scalar_type(int(shape[self.axis])))

    def activation(self) -> Activation:
        """What all batches told."""
        return self._activation(self._squares, self._size, np.arange(len(self.highs)), None)

    def fit(self) -> Activation:
        """What the batches told that are not kept apart, SAMPLED of them by sampled values."""
        batches = np.arange(len(self.highs))
        which = batches[batches % APART < APART - 1]
        return self._activation(self._squares - self._held, self._size - self._held_size, which, SAMPLED)

    def _activation(self, squares: np.ndarray, size: float, which: np.ndarray, most: int | None) -> Activation:
        """Of the batches `which`, of whose full ones `squares` and `size` are the sums; `most` of their samples."""

        def of(batches: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [batches[index] for index in which if index < len(batches)]

        squares, parts = np.atleast_1d(squares), which[which < PARTS]
        power = squares * len(squares) / max(size, 1.0)
        low, high = (np.broadcast_to(end[parts], (len(parts), len(power))) for end in (self._low, self._high))
        samples = of(self._samples)
        return Activation(
            Channels(low, high, power, size / len(power) * len(which) / max(len(samples), 1)),
            self.axis,
            np.concatenate(samples[:most]),
            np.concatenate(of(self._owners)[:most]),
            np.array(self.lows)[which],
            np.array(self.highs)[which],
            size,
            Vectors(tuple(of(self._vectors))),
        )


def _channel_axis(value: ir.Value) -> int | None:
    """Where the channels are: last for what a product or recurrent layer reads, else axis 1; None where it is open."""
    shape = value.shape
    if shape is None or len(shape) < 2:
        return None
    readers = [user for user, _ in value.uses()]
    products = any(user.op_type == "MatMul" and constant(user.inputs[1]) is not None for user in readers)
    products = products or any(user.op_type in recurrent.OPS and user.inputs[0] is value for user in readers)
    axis = len(shape) - 1 if products else 1
    return axis if isinstance(shape[axis], int) else None


def _never_negative(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is None or node.domain != "":
        return False
    if node.op_type == "Clip":
        low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and float(low) >= 0
    return node.op_type in NEVER_NEGATIVE or (node.op_type in KEEPS_SIGN and _never_negative(node.inputs[0]))


def _stride(size: int, per_batch: int) -> int:
    """An odd step, so that the sample does not stay in one column of an even-sized picture."""
    return size // per_batch // 2 * 2 + 1


class _Probes:
    """Grows measuring nodes on a clone of a model."""

    def __init__(self, model: ir.Model, keep_outputs: bool) -> None:
        self.model = model.clone()
        graph = self.model.graph
        self.values = {v.name: v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
        if not keep_outputs:
            graph.outputs.clear()

    def extremes(self, value: ir.Value, seen: _Seen, own: str) -> None:
        """`own/high`, and `own/low` where the value can be negative."""
        if seen.pooled:
            channels = value.shape[1]  # type: ignore[index]
            self.output(self.emit("GlobalMaxPool", [value], f"{own}/high"), "FLOAT", [None, channels, 1, 1])
        else:
            self.reduce("ReduceMax", value, seen.rest, f"{own}/high")
        if not seen.never_negative:
            self.reduce("ReduceMin", value, seen.rest, f"{own}/low")

    def reduce(self, op: str, value: ir.Value, axes: Sequence[int] | None, name: str) -> None:
        """A reduction over `axes` (None: all) as an output, in the form that the model's opset has."""
        if axes is None:
            probe = self.emit(op, [value], name, keepdims=0)
        elif self.model.graph.opset_imports.get("", 0) >= 18:
            listed = self._constant("axes/" + ",".join(map(str, axes)), np.array(axes, np.int64))
            probe = self.emit(op, [value, listed], name, keepdims=0)
        else:
            probe = self.emit(op, [value], name, keepdims=0, axes=axes)
        self.output(probe, "FLOAT", [] if axes is None else [None])

    def sample(self, value: ir.Value, own: str, per_batch: int) -> None:
        """`own/sample`, every `_stride`-th element, and `own/shape`."""
        numbers = {"flat": -1, "zero": 0, "end": np.iinfo(np.int64).max, "share": per_batch, "one": 1, "two": 2}
        flat, zero, end, share, one, two = (self._constant(n, np.array([v], np.int64)) for n, v in numbers.items())
        line = self.emit("Reshape", [value, flat], f"{own}/flat")
        ratio = self.emit("Div", [self.emit("Shape", [line], f"{own}/size"), share], f"{own}/ratio")
        even = self.emit("Mul", [self.emit("Div", [ratio, two], f"{own}/half"), two], f"{own}/even")
        step = self.emit("Add", [even, one], f"{own}/step")
        self.output(self.emit("Slice", [line, zero, end, zero, step], f"{own}/sample"), "FLOAT", [None])
        self.output(self.emit("Shape", [value], f"{own}/shape"), "INT64", [None])

    def vectors(self, value: ir.Value, own: str, seen: _Seen) -> None:
        """`own/vectors`, for `Window.vectors`: the rows that are looked at, or all where these are not known yet.

        Whole rows: a runtime picks single numbers one by one, numpy in a tenth of the time.
        """
        probe = value
        for index in (seen.indices or ())[:1]:
            known = self._constant("places/" + ",".join(map(str, index)), index)
            probe = self.emit("Gather", [probe, known], f"{own}/rows", axis=2)
        self.output(self.emit("Identity", [probe], f"{own}/vectors"), "FLOAT", [None] * len(value.shape or ()))

    def emit(self, op: str, inputs: Sequence[ir.Value], name: str, **attributes: int | Sequence[int]) -> ir.Value:
        import onnx_ir as ir

        node = ir.node(op, list(inputs), attributes=attributes, name=name)
        node.outputs[0].name = name
        self.model.graph.append(node)
        return node.outputs[0]

    def output(self, probe: ir.Value, dtype: str, shape: Sequence[Any]) -> None:
        import onnx_ir as ir

        probe.type, probe.shape = ir.TensorType(ir.DataType[dtype]), ir.Shape(shape)
        self.model.graph.outputs.append(probe)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        known = self.model.graph.initializers.get(f"{PREFIX}constant/{name}")
        return known if known is not None else initializer(self.model.graph, f"{PREFIX}constant/{name}", array)
