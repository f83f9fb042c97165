"""Does a converted model compute what its source computes? Judged on random feeds, in float64 where possible."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import draws, input_ranges
from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import Difference
from edgerun.passes import Feeds, Runner
from edgerun.pieces import Part

if TYPE_CHECKING:
    from edgerun.model import Model

FACTOR = 4.0  # how much larger than the source's own rounding error the converted model's may be
FLOOR = 1e-5  # relative error that always passes when judged against float64
PLAIN = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2}  # without a float64 reference; other dtypes: equal
CEILING = {
    "float64": 1e-4,
    "float32": 1e-2,
    "float16": 5e-2,
}  # beyond it, an error is none of rounding, whoever made it
# Relative difference from the source itself up to which float64 would pass it too, whatever the source's own error o:
# d + o <= max(FACTOR·o, FLOOR) for every o, if d <= (1 - 1/FACTOR)·FLOOR; a little less, for both are relative.
NEAR = 7e-6
DRAWS = 3
NOTHING = "nothing was compared: every output is empty"  # what the data says then
# TensorFlow waits ten seconds for memory before it says so, and other sizes would wait again.
OUT_OF_MEMORY = ("OOM when allocating", "can't allocate memory", "bad_alloc")


@dataclass(frozen=True)
class OutputParity:
    """One output over all draws. Errors are against `Parity.reference`; `source_error` is the source's own against it.

    `max_abs_error` is in the output's unit, `relative_error` = max|e| / max|reference|, `sqnr_db` is None when nothing
    differs; `bound` is the relative error that passes, None where pieces are judged instead (`CodesParity`).
    """

    name: str
    max_abs_error: float
    relative_error: float
    sqnr_db: float | None
    source_error: float | None
    bound: float | None

    @property
    def passed(self) -> bool:
        """Is the relative error within the bound?"""
        return self.bound is None or self.relative_error <= self.bound


@dataclass(frozen=True)
class CodesParity:
    """All pieces that end in one kind of the source's operators, each fed with what the source fed it.

    `steps` is the largest difference of codes, `differing` of `elements` codes differ at all; `relative_error` is that
    of floats made of codes; `bound` are the steps that pass. `place` tells the first piece that does not pass.
    """

    kind: str
    pieces: int
    elements: int
    differing: int
    steps: float
    relative_error: float
    bound: int
    place: str = ""

    @property
    def passed(self) -> bool:
        """Do codes differ by at most `bound`, and floats by what float32 may?"""
        return self.steps <= self.bound and self.relative_error <= PLAIN["float32"]


@dataclass(frozen=True)
class Parity:
    """The check that ends a conversion: `reference` is "float64" or "source"; `shapes` are the drawn input shapes.

    On the first `exact` of those the source ran in float64. On the others it need not, since the model is so near to
    the source itself that float64 would pass it too: there, errors are against that.
    """

    reference: str
    data: str
    shapes: tuple[str, ...]
    outputs: tuple[OutputParity, ...]
    codes: tuple[CodesParity, ...] = ()
    exact: int = 0

    @property
    def passed(self) -> bool:
        """Did every output, and every piece, pass?"""
        return all(output.passed for output in self.outputs) and all(kind.passed for kind in self.codes)

    @property
    def inconclusive(self) -> str:
        """Of which outputs the source itself loses so much on these inputs that they prove nothing; "" of none."""
        lost = [o for o in self.outputs if o.source_error and o.bound and FACTOR * o.source_error > o.bound]
        return "; ".join(
            f"the source's own {o.name!r} is off by {o.source_error:.2g} of its largest value" for o in lost
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values, as they stand in a Step's options."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Parity:
        """What `to_json` gave."""
        outputs = tuple(OutputParity(**output) for output in told["outputs"])
        codes = tuple(CodesParity(**kind) for kind in told.get("codes", ()))
        exact = told.get("exact", len(told["shapes"]) if told["reference"] == "float64" else 0)
        return cls(told["reference"], told["data"], tuple(told["shapes"]), outputs, codes, exact)

    @classmethod
    def of(cls, model: Model, key: str = "parity") -> Parity:
        """The parity of the model's latest conversion, out of its history ("parity on data": on the data given).

        Raises EdgerunError when it has none.
        """
        for step in reversed(model.history):
            if key in step.options:
                return cls.from_json(step.options[key])
        raise EdgerunError("the model's history holds no conversion", do="run edgerun convert on its source")


def check(
    model: Model,
    converted: Runner,
    source: Runner,
    source64: Runner | None,
    seed: int = 0,
    feeds: Sequence[Feeds] = (),
    data: str = "",
    parts: Iterable[Part] | None = None,
) -> Parity:
    """Compare on `feeds`, which `data` describes; without them on DRAWS random ones, with batch 1 and two other
    batches where dimensions are symbolic. With `parts` these are judged, and the outputs only told.

    Raises EdgerunError when the source refuses every feed, and GateFailed when the converted model refuses one that
    the source takes.
    """
    drawn = [(given, source(given)) for given in feeds] or accepted(model, source, seed)
    made = [_run_converted(converted, inputs) for inputs, _ in drawn]
    found = [_differences(wanted, got, wanted) for (_, wanted), got in zip(drawn, made, strict=True)]
    dtypes, exact = {spec.name: spec.dtype for spec in model.outputs}, 0
    near = all(direct.relative_error <= NEAR for draw in found for *_, direct in draw.values())
    while source64 is not None and exact < len(drawn) and not (near and exact and _conclusive(found[0], dtypes)):
        inputs, wanted = drawn[exact]
        found[exact] = _differences(wanted, made[exact], source64(inputs))
        exact += 1
    totals = {name: _total([draw[name] for draw in found], exact) for name in found[0]}
    outputs = tuple(_judge(name, dtypes[name], total, exact > 0) for name, total in totals.items())
    if parts is not None:
        outputs = tuple(replace(output, bound=None) for output in outputs)
    shapes = tuple(", ".join(f"{n}{list(a.shape)}" for n, a in inputs.items()) for inputs, _ in drawn)
    words = ", words that the model knows and others" * any(spec.dtype == "object" for spec in model.inputs)
    data = data or f"random, seed {seed}: floats N(0, 1), integers uniform{words}"
    if not parts and not any(total[0].count for total in totals.values()):
        data = f"{data}; {NOTHING}"
    return Parity("float64" if exact else "source", data, shapes, outputs, _pieces(parts or ()), exact)


def _differences(
    wanted: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]
) -> dict[str, tuple[Difference, Difference, Difference]]:
    """Of every output: the value and the source against the reference, the value against the source."""
    found = {}
    for name, want in wanted.items():
        value = _same_shape(name, want, got)
        reference = exact[name] if want.dtype.kind == "f" else want
        pairs = (reference, value), (reference, want), (want, value)
        found[name] = (Difference.of(*pairs[0]), Difference.of(*pairs[1]), Difference.of(*pairs[2]))
    return found


def _total(draws: Sequence[Sequence[Difference]], exact: int) -> list[Difference]:
    """The sums over all draws; the source's own error is known of those that ran in float64."""
    values, sources, directs = zip(*draws, strict=True)
    return [sum(sums, Difference()) for sums in (values, sources[:exact], directs)]


def _conclusive(draw: Mapping[str, Sequence[Difference]], dtypes: Mapping[str, str]) -> bool:
    """Does the source keep its own precision there, so that its error is below what any error may be?"""
    return all(FACTOR * own.relative_error <= CEILING.get(dtypes[name], 0.0) for name, (_, own, _) in draw.items())


def _pieces(parts: Iterable[Part]) -> tuple[CodesParity, ...]:
    kinds: dict[str, CodesParity] = {}
    for part in parts:
        got, so_far = _run_converted(part.run, part.feeds), kinds.get(part.kind)
        so_far = so_far or CodesParity(part.kind, 0, 0, 0, 0.0, 0.0, part.steps)
        for name, want in part.wanted.items():
            difference = Difference.of(want, value := _same_shape(name, want, got))
            floats = want.dtype.kind == "f"
            beyond = difference.relative_error > PLAIN["float32"] if floats else difference.max_error > part.steps
            if beyond and not so_far.place:
                so_far = replace(so_far, place=_place(name, want, value))
            if floats:
                error = max(so_far.relative_error, difference.relative_error)
                so_far = replace(so_far, relative_error=error)
                continue
            so_far = replace(
                so_far,
                elements=so_far.elements + want.size,
                differing=so_far.differing + int((want != value).sum()),
                steps=max(so_far.steps, difference.max_error),
            )
        kinds[part.kind] = replace(so_far, pieces=so_far.pieces + 1)
    return tuple(kinds[kind] for kind in sorted(kinds))


def _place(name: str, want: np.ndarray, value: np.ndarray) -> str:
    """Where in the value called so the two differ most, and both numbers."""
    errors = np.abs(want.astype(np.float64) - value.astype(np.float64))
    index = np.unravel_index(int(np.where(np.isnan(errors), np.inf, errors).argmax()), want.shape)
    at = [int(i) for i in index]
    return f"value {name!r} at {at}: the source has {want[index]:.6g}, the model {value[index]:.6g}"


def _judge(name: str, dtype: str, total: Sequence[Difference], judged64: bool) -> OutputParity:
    value, source, direct = total
    if judged64 and dtype in PLAIN and math.isfinite(source.max_error):
        own = source.relative_error
        return _output(name, value, own, min(max(FACTOR * own, FLOOR), CEILING[dtype]))
    # No float64, or the source itself overflows where float64 does not: then it must be the source that is met.
    return _output(name, direct, None, PLAIN.get(dtype, 0.0))


def _output(name: str, error: Difference, own: float | None, bound: float) -> OutputParity:
    sqnr = error.sqnr_db if math.isfinite(error.sqnr_db) else None
    return OutputParity(name, error.max_error, error.relative_error, sqnr, own, bound)


def accepted(model: Model, source: Runner, seed: int = 0) -> list[tuple[Feeds, Mapping[str, np.ndarray]]]:
    """Feeds that the source takes, with its outputs: the first group of sizes where every draw runs and gives numbers.

    Batch 1 may be refused (one node in a graph has no other to be joined to): then larger ones are drawn. Where a
    signal is shorter than the source's window, outputs may be empty: larger sizes come before such a group.
    """
    below = input_ranges.ranges(model.ir)
    refusal: Exception | None = None
    empty: list[tuple[Feeds, Mapping[str, np.ndarray]]] = []
    for other, batches in itertools.product(draws.larger(model.inputs), ((1, 3, 2), (4, 6, 5))):
        try:
            found: list[tuple[Feeds, Mapping[str, np.ndarray]]] = []
            for number in range(DRAWS):
                # Doubling keeps the divisibility that a network with strides may ask for.
                dims = draws.sizes(model.inputs, batches[number % 3], other * (1, 1, 2)[number % 3])
                feeds = draws.feeds(model.inputs, dims, seed + number, below)
                found.append((feeds, source(feeds)))
            if all(np.size(array) for _, outputs in found for array in outputs.values()):
                return found
            empty = empty or found
        except Exception as error:  # any framework's own complaint about a shape
            if any(word in str(error) for word in OUT_OF_MEMORY):
                if empty:
                    break
                raise EdgerunError("the source needs more memory than it may have", got=str(error)[:400],
                                   do="--memory-cap allows more") from error  # fmt: skip
            refusal = refusal or error
        if not draws.sizes(model.inputs, 1, 1):
            break
    if empty:
        return empty
    raise EdgerunError(
        "the source refuses every random input that was tried", got=str(refusal)[:400],
        wanted=", ".join(map(str, model.inputs)),
        do="give --input with fixed sizes that the model takes, or --data FILE with inputs that it takes",
    ) from refusal  # fmt: skip


def _run_converted(converted: Runner, feeds: Feeds) -> dict[str, np.ndarray]:
    try:
        return converted(feeds)
    except Exception as error:  # the runtime's own exceptions
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        raise GateFailed(
            "the converted model fails on an input that the source takes", got=f"{shapes}: {str(error)[:300]}",
            do="a dimension may have been fixed while exporting: try fixed sizes in --input",
        ) from error  # fmt: skip


def _same_shape(name: str, want: np.ndarray, got: Mapping[str, np.ndarray]) -> np.ndarray:
    value = got.get(name)
    if value is None or value.shape != want.shape:
        shape = "nothing" if value is None else list(value.shape)
        raise GateFailed(
            f"output {name!r} has another shape than the source's", got=shape, wanted=str(list(want.shape))
        )
    return value
