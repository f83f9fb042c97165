"""Does a compiled model compute what a reference computed? The bounds, on feeds with known outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.metrics import RELATIVE_ERROR, SQNR_DB, Difference
from edgerun.runtime import Options, SelfCheck, Session
from edgerun.target import Feeds

SQNR_LOSS_DB = 3.0  # how much further from the float model the engine may be than the reference is
EXACT = np.longdouble  # of no model's outputs, but of what is exact for those in half precision
NEAR, FLOOR = 1e-3, 1e-5  # of an element, as ONNX's own suite asks, and of the output's largest
ANOTHER = "use another target for this model"
# A detector that finds nothing in noise gives outputs near zero, in which rounding is all that there is.
REAL = (
    "compare on real inputs (--data), or with the float model (--original): on drawn ones rounding may be all there is"
)
Pair = tuple[Feeds, dict[str, np.ndarray]]
Exact = Callable[[Sequence[Feeds]], Sequence[Mapping[str, np.ndarray]]]


def advice(options: Options) -> str:
    """What to do where an engine differs, or fails: what was asked for may be the reason, as another precision is."""
    said = ", ".join(f"{key}={value}" for key, value in options.extra.items())
    return f"leave out {said}, or {ANOTHER}" if said else ANOTHER


def judged(
    session: Session,
    target: str,
    label: str,
    pairs: Sequence[Pair],
    rounds: bool,
    exact: Exact | None = None,
    do: str = ANOTHER,
    least_db: float = SQNR_DB,
) -> SelfCheck:
    """Run the feeds of `pairs` and compare with their outputs, which `label` computed; `rounds` says that steps round.

    `exact` gives the float model's outputs for feeds, or nothing where it is not known; it judges what is further from
    the reference than the bound. Raises GateFailed naming the worst output, and what to `do`.
    """
    feeds, wanted = [feed for feed, _ in pairs], [outputs for _, outputs in pairs]
    got = [_run(session, feed, None if do == REAL else do) for feed in feeds]
    totals = _totals(wanted, got)
    worst = min(totals, key=lambda n: totals[n].sqnr_db if rounds else -totals[n].relative_error)
    error = totals[worst]
    agreed = error.sqnr_db >= least_db if rounds else error.agrees(rounds=False)
    if not agreed and exact is not None:
        agreed = bool(judge := exact(feeds)) and _as_near(judge, wanted, got)
    if not agreed:
        raise GateFailed(
            f"the engine for {target} does not compute what the model says: output {worst!r}",
            got=f"SQNR {error.sqnr_db:.1f} dB, relative error {error.relative_error:.2g} against {label}",
            wanted=f"SQNR of {least_db:.3g} dB" if rounds else f"relative error {RELATIVE_ERROR:g}",
            do=do,
        )
    shapes = dict.fromkeys(_shapes(feed) for feed in feeds)
    outside = sum(
        _outside(array, have[name], FLOOR * totals[name].max_reference)
        for want, have in zip(wanted, got, strict=True)
        for name, array in want.items()
    )
    compared = sum(any(map(_tells, want.values())) for want in wanted)
    return SelfCheck(label, compared, tuple(shapes), worst, error.relative_error, error.sqnr_db, outside)


def apart(
    session: Session,
    target: str,
    label: str,
    parts: Sequence[Sequence[Pair]],
    rounds: bool,
    exact: Exact | None = None,
    do: str = ANOTHER,
    least_db: float = SQNR_DB,
) -> SelfCheck:
    """`judged`, each of `parts` for itself, since each is computed by kernels of its own: the worst of them, with the
    runs and shapes of all."""
    found = [judged(session, target, label, part, rounds, exact, do, least_db) for part in parts if part]
    worst = min(found, key=lambda check: check.sqnr_db if rounds else -check.relative_error)
    shapes = dict.fromkeys(shape for check in found for shape in check.shapes)
    runs, outside = sum(check.runs for check in found), sum(check.outside for check in found)
    return replace(worst, runs=runs, shapes=tuple(shapes), outside=outside)


def _as_near(
    exact: Sequence[Mapping[str, np.ndarray]], reference: Sequence[Mapping[str, np.ndarray]], got: Sequence[Any]
) -> bool:
    """Whether the engine's outputs are as near to the float model's as the reference's are, to SQNR_LOSS_DB."""
    ours, theirs = _totals(exact, got), _totals(exact, reference)
    return all(ours[n].sqnr_db >= theirs[n].sqnr_db - SQNR_LOSS_DB for n in ours)


def _totals(
    wanted: Sequence[Mapping[str, np.ndarray]], got: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Difference]:
    totals = dict.fromkeys(wanted[0], Difference())
    for want, have in zip(wanted, got, strict=True):
        for name, array in want.items():
            totals[name] += _difference(name, array, have[name])
    return totals


def _run(session: Session, feed: Feeds, do: str | None) -> dict[str, np.ndarray]:
    try:
        return session.run(feed)
    except GateFailed:  # a session whose kernels for other shapes disagree
        raise
    except EdgerunError as error:
        what = "the engine fails on an input that the reference takes"
        raise Unsupported(what, got=f"{_shapes(feed)}: {error.got}", do=do) from error


def _shapes(feed: Feeds) -> str:
    return ", ".join(f"{n}{list(a.shape) if isinstance(a, np.ndarray) else ''}" for n, a in feed.items())


def _difference(name: str, want: Any, got: Any) -> Difference:
    if want is None or isinstance(want, list):  # an absent optional, or a sequence
        if type(want) is not type(got) or len(want or ()) != len(got or ()):
            raise GateFailed(f"output {name!r} has another length than the reference's", got=got, wanted=str(want))
        return sum((_difference(name, w, g) for w, g in zip(want or (), got or (), strict=True)), Difference())
    if want.dtype not in (got.dtype, EXACT) or want.shape != got.shape:
        raise GateFailed(
            f"output {name!r} has another type than the model says",
            got=f"{got.dtype}{list(got.shape)}",
            wanted=f"{want.dtype}{list(want.shape)}",
        )
    return Difference.of(want, got)


def _tells(want: Any) -> bool:
    # Whether an output says anything of what was computed: an empty one does not, nor one of NaN and infinities.
    if want is None or isinstance(want, list):
        return any(map(_tells, want or ()))
    return want.size > 0 and (want.dtype.kind in "OSU" or bool(np.isfinite(want.astype(np.float64)).any()))


def _outside(want: Any, got: Any, floor: float) -> int:
    """How many elements are not near: a bound on the largest says nothing of small ones."""
    if want is None or isinstance(want, list):
        return sum(_outside(w, g, floor) for w, g in zip(want or (), got or (), strict=True))
    if want.dtype.kind == "O":
        return int(np.count_nonzero(want != got))
    r, v = np.asarray(want, np.float64), np.asarray(got, np.float64)
    finite = np.isfinite(r) & np.isfinite(v)
    r, v = r[finite], v[finite]
    return int(np.count_nonzero(np.abs(r - v) > NEAR * np.abs(r) + floor))
