"""Which weights need more bits: the fewest that bring the outputs within a bound, on data kept apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun import cache
from edgerun.checkpoint import Memo
from edgerun.quantize import _resumed, _scores, _weights
from edgerun.quantize._observation import samples_in

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Request
    from edgerun.quantize._stream import Totals

Trial = Callable[[Iterable[str]], "ir.Model"]

APART = 4  # every fourth batch of the calibration data is kept from the rounding, and judges it
MOST = 0.5  # of the weights may be spared: with more, nothing of the scheme would be left


def fitting(request: Request) -> Iterable[Feeds]:
    """The calibration data without what is kept apart."""
    return (feeds for index, feeds in enumerate(request.calibration or ()) if index % APART != APART - 1)


def apart(request: Request) -> tuple[list[Feeds], list[Feeds]]:
    """A few samples to rank the layers on, and a few that the rounding never sees (the same, where there are none)."""
    ranking: list[Feeds] = []
    judge: list[Feeds] = []
    for index, feeds in enumerate(request.calibration or ()):
        held = index % APART == APART - 1
        kept, most = (judge, request.effort.first) if held else (ranking, max(2 * request.effort.search, 8))
        if sum(samples_in(one, request) for one in kept) < most:
            kept.append(feeds)
    return ranking, judge or ranking


def spared(
    sizes: Mapping[str, int],
    trial: Trial,
    floor_db: float,
    data: tuple[list[_weights.Truth], list[_weights.Truth]],
    request: Request,
    what: str,
    most: float = MOST,
    loss_db: float | None = None,
) -> list[str]:
    """The names of the layers to spare so that the outputs on the second data keep `floor_db`, by bisection;
    where it is not None, it is enough that no more than `loss_db` is lost of what there is with none rounded.

    `sizes` are numbers of weights by layer, `trial(names)` the model with these layers rounded and all others float,
    `data` a few samples and what judges. The order is that of damage per weight: the noise at the model's outputs
    when one layer alone is rounded, over its size; at most `most` of the weights are spared. `what` says in a
    checkpoint which trials these are.
    """
    ranking, judge = data
    memo = Memo(request.checkpoint, f"trials of {what}", *_resumed.about(request), *sorted(request.keep_float))

    def lost(names: Sequence[str]) -> list[Totals]:
        return _weights.lost(memo, cache.key(*names), lambda: trial(names), judge, request)

    # Fewer rounded layers may leave an output exact, which then counts as that.
    over = _scores.counted(lost(list(sizes)))

    def reached(names: Sequence[str]) -> float:
        return _scores.sqnr(lost(names), over)

    def alone(name: str) -> float:
        scores = _weights.lost(memo, f"alone: {name}", lambda: trial([name]), ranking, request)
        return _scores.sqnr(scores, over)

    if loss_db is not None and reached(list(sizes)) < floor_db:
        floor_db = min(floor_db, reached([]) - loss_db)
    if reached(list(sizes)) >= floor_db:
        return []
    damage = {}
    for index, name in enumerate(sizes):
        damage[name] = 10 ** (-alone(name) / 10) / sizes[name]
        request.progress("damage of each layer", index + 1, len(sizes))
    order = sorted(sizes, key=lambda name: -damage[name])
    taken = np.cumsum([sizes[name] for name in order])
    low, high = 1, int(np.searchsorted(taken, most * taken[-1], "right"))
    while low < high:
        middle = (low + high) // 2
        request.progress("choosing bits", 0, 0)
        enough = reached(order[middle:]) >= floor_db
        low, high = (low, middle) if enough else (middle + 1, high)
    return order[: min(low, high)]
