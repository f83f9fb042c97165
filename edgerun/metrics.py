"""How close two results are, and how sure an accuracy is: pure functions on arrays, float64 inside.

Letters: r the reference, v the value, e = r - v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from edgerun.errors import EdgerunError

RELATIVE_ERROR = 1e-3  # of float models: max |y - r| / max |r|, every output
# Of models that round (Q/DQ, float16). A tie that falls the other way moves a whole step and everything behind it:
# on a quantized MobileNetV2 ONNX Runtime with and without its optimizations agrees with itself to 20 dB, and both are
# as near to the float model. So the float model is the judge where it is known, and else the bound is a low one.
SQNR_DB = 10.0
BLOCK = 1 << 13  # elements that are looked at together: what is computed of them stays in a core's cache


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval [low, high] in the unit of what it estimates."""

    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Difference:
    """The sums behind SQNR, errors and cosine; `a + b` is the Difference of both batches together.

    `signal` Σr², `noise` Σe², `power` Σv², `dot` Σr·v, `max_error` max|e|, `max_reference` max|r|, `count` elements.
    Elements where both hold the same inf, or both NaN, are equal and only counted; any other non-finite
    element makes `noise` and `max_error` infinite.
    """

    signal: float = 0.0
    noise: float = 0.0
    power: float = 0.0
    dot: float = 0.0
    max_error: float = 0.0
    max_reference: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, reference: np.ndarray, value: np.ndarray) -> Difference:
        """The sums of one pair of arrays of the same shape; strings are 1 where they are equal, and 0 for 1 elsewhere.

        Raises EdgerunError when the shapes differ.
        """
        r, v = np.asarray(reference), np.asarray(value)
        if r.shape != v.shape:
            raise EdgerunError("two results of different shape cannot be compared", got=v.shape, wanted=str(r.shape))
        if r.dtype.kind in "OU":
            r, v = np.ones(r.shape), np.asarray(r == v)
        r, v = r.reshape(-1), v.reshape(-1)
        blocks = [cls._of(r[at : at + BLOCK], v[at : at + BLOCK]) for at in range(0, max(1, r.size), BLOCK)]
        return sum(blocks[1:], blocks[0])

    @classmethod
    def _of(cls, r: np.ndarray, v: np.ndarray) -> Difference:
        r, v = r.astype(np.float64), v.astype(np.float64)
        finite = np.isfinite(r) & np.isfinite(v)
        broken = False
        if not finite.all():
            broken = not np.array_equal(r[~finite], v[~finite], equal_nan=True)
            r, v = r[finite], v[finite]
        e = r - v
        return cls(
            _dot(r, r),
            math.inf if broken else _dot(e, e),
            _dot(v, v),
            _dot(r, v),
            math.inf if broken else float(np.abs(e).max(initial=0.0)),
            float(np.abs(r).max(initial=0.0)),
            finite.size,
        )

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.signal + other.signal,
            self.noise + other.noise,
            self.power + other.power,
            self.dot + other.dot,
            max(self.max_error, other.max_error),
            max(self.max_reference, other.max_reference),
            self.count + other.count,
        )

    @property
    def sqnr_db(self) -> float:
        """10·log10(Σr² / Σe²) in dB; inf when nothing differs, -inf when the reference is zero and the value is not."""
        if self.noise == 0:
            return math.inf
        if self.signal == 0 or math.isinf(self.noise):
            return -math.inf
        return 10 * (math.log10(self.signal) - math.log10(self.noise))

    @property
    def relative_error(self) -> float:
        """max|e| / max|r|; 0 when nothing differs, inf when only the reference is zero."""
        if self.max_error == 0:
            return 0.0
        return self.max_error / self.max_reference if self.max_reference else math.inf

    def agrees(self, *, rounds: bool) -> bool:
        """Whether two engines of one model differ by no more than two may; `rounds` says that it has steps."""
        return self.sqnr_db >= SQNR_DB if rounds else self.relative_error <= RELATIVE_ERROR

    @property
    def cosine(self) -> float:
        """Σr·v / √(Σr²·Σv²), in [-1, 1]; 1 when both are zero, 0 when one is, NaN when a value broke (NaN or inf)."""
        if math.isinf(self.noise):
            return math.nan
        if self.signal == 0 or self.power == 0:
            return 1.0 if self.signal == self.power else 0.0
        return max(-1.0, min(1.0, self.dot / math.sqrt(self.signal) / math.sqrt(self.power)))


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Σa·b. Not by BLAS: its threads wait for cores that have other work, for longer than the sum takes."""
    return float(np.einsum("i,i->", a, b))


def sqnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal to quantization noise ratio in dB, see `Difference.sqnr_db`."""
    return Difference.of(reference, value).sqnr_db


def relative_error(reference: np.ndarray, value: np.ndarray) -> float:
    """max|r - v| / max|r|, see `Difference.relative_error`."""
    return Difference.of(reference, value).relative_error


def predicted(logits: np.ndarray) -> np.ndarray:
    """Class of every row: `logits` [..., classes] -> int64 [...]; the first of equals; -1 where a row holds NaN.

    Raises EdgerunError when there are fewer than two classes: then there is nothing to choose.
    """
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise EdgerunError("an output has no classes to choose from", got=list(logits.shape),
                           wanted="[n, classes >= 2]", do="edgerun compare measures any output")  # fmt: skip
    classes: np.ndarray = logits.argmax(axis=-1).astype(np.int64)
    if logits.dtype.kind == "f":
        classes = np.where(np.isnan(logits).any(axis=-1), -1, classes)
    return classes


def correct(logits: np.ndarray, labels: np.ndarray, highest: int = 1) -> np.ndarray:
    """bool [n]: is the label the predicted class, or among the `highest`? `logits` [n, classes], `labels` int [n].

    Raises EdgerunError for labels that are no classes: counted from 1, or another model's.
    """
    chosen, most = predicted(logits), logits.shape[-1] - 1
    hits = same_class(chosen, labels)
    if labels.size and (labels.min() < 0 or labels.max() > most):
        raise EdgerunError("the labels are no classes of this output", got=f"{labels.min()} to {labels.max()}",
                           wanted=f"0 to {most}", do="count classes from 0; take the data of this model")  # fmt: skip
    if highest > 1:
        if highest > most:
            raise EdgerunError("no class can be missed", got=f"{most + 1} classes, and the {highest} highest count",
                               wanted=f"more than {highest} classes", do="--metric top1")  # fmt: skip
        order = np.argsort(-logits, axis=-1, kind="stable")[..., :highest]
        hits = (order == labels[..., None]).any(axis=-1) & (chosen >= 0)
    return hits


def same_class(classes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """bool [n]: do both choose the same class? -1 is none. Raises EdgerunError for different shapes."""
    if classes.shape != chosen.shape:
        raise EdgerunError(
            "logits and labels do not belong together", got=list(chosen.shape), wanted=str(list(classes.shape))
        )
    same: np.ndarray = (classes == chosen) & (classes >= 0)
    return same


def counted(baseline: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """(lost, gained, squares) of two models' scores [n], d = baseline - other: Σ max(0, d), Σ max(0, -d) and Σ d²."""
    d = baseline.astype(np.float64) - other
    return whole(np.maximum(d, 0).sum()), whole(np.maximum(-d, 0).sum()), float(np.square(d).sum())


def whole(value: float) -> float:
    """A sum of scores, as an int where it is a count."""
    return int(value) if float(value).is_integer() else float(value)


def wilson(hits: float, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927): `hits` of `n`, bounds in 0..1."""
    _check_counts(n, hits, n - hits)
    z = _z(confidence)
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half), confidence)


def paired_drop(
    lost: float, gained: float, n: float, confidence: float = 0.95, squares: float | None = None
) -> Interval:
    """Interval of the accuracy drop (baseline - other, -1..1) of two models on the same n examples.

    `lost`: examples that only the baseline has right; `gained`: those that only the other has right. Examples on
    which both agree carry no information about the difference, so an easy test set is not punished.
    Adjusted Wald of D. G. Bonett and R. M. Price (J. Educ. Behav. Stat. 37, 2012): one example is added to both
    cells, p12 = (lost+1)/(n+2), p21 = (gained+1)/(n+2), p12 - p21 ± z·√((p12 + p21 - (p12 - p21)²)/(n+2)).
    Of scores between 0 and 1 the same two examples are added, and p12 + p21 is (`squares`+2)/(n+2), with the sum of the
    squared differences (None: lost + gained, of which it is no more).
    """
    _check_counts(n, lost, gained, n - lost - gained)
    p12, p21 = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    moment = p12 + p21 if squares is None else (squares + 2) / (n + 2)
    half = _z(confidence) * math.sqrt((moment - (p12 - p21) ** 2) / (n + 2))
    return Interval(max(-1.0, p12 - p21 - half), min(1.0, p12 - p21 + half), confidence)


def samples_to_decide(
    lost: float, gained: float, n: int, limit: float, confidence: float = 0.95, squares: float | None = None
) -> int | None:
    """About how many samples, at the rates seen, put the whole drop interval on one side of `limit` (0..1).

    None when even a billion would not: the drop sits on the limit.
    """
    low, high = n, 1_000_000_000

    def decided(size: int) -> bool:
        more = None if squares is None else squares / n * size
        drop = paired_drop(lost / n * size, gained / n * size, size, confidence, more)
        return drop.high < limit or drop.low > limit

    if not decided(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle + 1, high)
    return low


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _check_counts(n: float, *cells: float) -> None:
    # Rates times a size may fall below zero by rounding; a count may not.
    if n <= 0 or min(cells) < -1e-6 * n:
        raise EdgerunError(
            "an interval needs counts that fit", got=f"n={n}, cells={cells}", wanted="n > 0 and cells >= 0"
        )
