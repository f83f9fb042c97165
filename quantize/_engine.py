"""What an engine loses of the float model on calibration data, beside the graph that it was compiled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import GateFailed, Unsupported
from edgerun.quantize._scores import ERROR, counted, farther, interval, sqnr

if TYPE_CHECKING:
    from edgerun.passes import Evidence, Runner
    from edgerun.runtime import Session

LOSS_DB = 3.0  # how much farther from the float model an engine may surely be than its graph
NEAR_DB = 50.0  # from which on it is near, whatever the graph is: a quantizer's ties alone may make less of 70 dB


@dataclass(frozen=True)
class Compiled:
    """SQNR (dB) of an engine of `target` to the float model over `samples`, and its interval on others like these
    (95 %; None of too few)."""

    target: str
    sqnr_db: float
    interval: tuple[float, float] | None
    samples: int

    def __str__(self) -> str:
        ends = "" if self.interval is None else ", {:.1f} to {:.1f}".format(*self.interval)
        n = f"n={self.samples}{', 95 %' if ends else ''}"
        return f"as compiled for {self.target}: SQNR {self.sqnr_db:.1f} dB{ends} ({n})"

    def to_json(self) -> dict[str, Any]:
        return {"target": self.target, "SQNR (dB)": self.sqnr_db, "samples": self.samples,
                "interval (dB, 95 %)": None if self.interval is None else list(self.interval)}  # fmt: skip


def judged(session: Session, usual: Mapping[str, Sequence[int]], evidence: Evidence, target: str) -> Compiled | None:
    """What a `session` of an engine of `target` loses on the samples that the graph was judged on, run one by one where
    its kernels are for `usual` shapes of one; None where rounding decides how many numbers an output has.

    Raises GateFailed where it is surely LOSS_DB farther from the float model than the graph is, and not NEAR_DB near.
    """
    try:
        return _judged(_one_by_one(session, usual), evidence, target)
    except (GateFailed, Unsupported):  # or the samples of a batch say something of each other
        try:
            return _judged(session.run, evidence, target)
        except Unsupported:
            return None


def _judged(run: Runner, evidence: Evidence, target: str) -> Compiled:
    pairs = list(zip(evidence.of(run), evidence.lost, strict=False))
    there, graph = ([dict(lost) for lost in one] for one in zip(*pairs, strict=True))
    over = counted(there, graph)
    found = sqnr(there, over)
    if found < NEAR_DB and farther(graph, there, ERROR) > LOSS_DB:
        raise GateFailed(
            f"the engine for {target} is farther from the float model than the graph that it was compiled from",
            got=f"SQNR {found:.1f} dB, the graph {sqnr(graph, over):.1f} dB, on n={len(there)} calibration samples",
            wanted=f"at most {LOSS_DB:g} dB less",
            do="use another target for this model, or --keep-float what it computes otherwise",
        )
    return Compiled(target, round(found, 2), _rounded(interval(there)), len(there))


def _one_by_one(session: Session, usual: Mapping[str, Sequence[int]]) -> Runner:
    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = {array.shape[0] if array.ndim else 1 for array in feeds.values()}
        if len(rows) > 1 or rows == {1} or any(tuple(shape)[:1] != (1,) for shape in usual.values()) or not usual:
            return session.run(feeds)
        each = [session.run({name: array[i : i + 1] for name, array in feeds.items()}) for i in range(*rows)]
        if any(array.shape[:1] != (1,) for array in each[0].values()):
            return session.run(feeds)
        return {name: np.concatenate([out[name] for out in each]) for name in each[0]}

    return run


def _rounded(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ends is None else (round(ends[0], 2), round(ends[1], 2))
