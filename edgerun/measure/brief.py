"""A brief comparison: as few sessions as the difference needs, and no claim beyond them.

Models are timed in sessions (`latency.interleaved`), each opened anew. Two sessions of one model differ lastingly by
where their memory happens to lie, so few sessions tell gross differences alone: after the first one, its rounds'
interval is widened by LUCK on both sides. A smaller difference needs the sign test over six or nine sessions
(`stats.speedup`). A false 'faster' between equal models: at most 1.6 % at six, 2 % at nine, and at the first session as
often as two of one model's sessions differ by more than LUCK.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack

import numpy as np

from edgerun.measure.latency import Open, Run, interleaved
from edgerun.measure.stats import FEWEST_SESSIONS, Estimate, median, speedup, verdict
from edgerun.metrics import Interval

LUCK = 0.1  # what two sessions of one model may differ by
LOOKS = (1, FEWEST_SESSIONS, 9)  # sessions after which the answer is looked at
ROUNDS = 6  # the fewest with an interval
MOST_ROUNDS = 4 * ROUNDS  # of a session whose rounds other work on the machine spoils

QUARTER = 0.25  # of a round's times, for one: other work on the machine only ever adds to the rest

Session = Mapping[str, Sequence[float]]  # by model: the lower quartile of each round, seconds


def session(
    models: Mapping[str, Open], number: int, seconds: float, enough: Callable[[Session], bool] = lambda found: True
) -> dict[str, list[float]]:
    """Open all models in an order drawn for session `number`, time them in turns for about `seconds`, close them.

    While it is not `enough`, and rounds differ by more than sessions do, there are more of them, MOST_ROUNDS in all:
    that costs less than to open the models again.
    """
    order, generator = sorted(models), random.Random(number)
    generator.shuffle(order)
    with ExitStack() as stack:
        opened = dict(zip(order, _entered([models[name]() for name in order], stack), strict=True))
        found: dict[str, list[float]] = {name: [] for name in models}
        while not found[order[0]] or (len(found[order[0]]) < MOST_ROUNDS and not (steady(found) or enough(found))):
            timed = interleaved(
                opened, rounds=ROUNDS, fewest=ROUNDS, seconds=seconds, warmup=1, seed=generator.getrandbits(32)
            )
            for name, samples in timed.items():
                found[name] += np.quantile(samples, QUARTER, axis=1).tolist()
    return found


def steady(found: Session) -> bool:
    """Whether the rounds of a session agree on how the models compare, to LUCK."""
    first, *rest = (np.asarray(times) for times in found.values())
    ends = [median((first / times).tolist()).interval for times in rest]
    return all(interval.high <= interval.low * (1 + LUCK) for interval in ends)


def beyond(found: Session, base: str, other: str, bound: float) -> bool:
    """Whether a session's rounds surely say on which side of `bound` a run of `base` over one of `other` is."""
    interval = median((np.asarray(found[base]) / np.asarray(found[other])).tolist()).interval
    return not interval.low <= bound <= interval.high


def _entered(contexts: Sequence[AbstractContextManager[Run]], stack: ExitStack) -> list[Run]:
    """All at once: a runtime compiles a model on one core. Where one fails, the others are closed with the stack."""
    with ThreadPoolExecutor(len(contexts)) as pool:
        entering = [pool.submit(context.__enter__) for context in contexts]
    for context, future in zip(contexts, entering, strict=True):
        if future.exception() is None:
            stack.push(context)
    return [future.result() for future in entering]


def compared(sessions: Sequence[Session], base: str, other: str) -> Estimate:
    """How many times faster `other` is than `base`, with an interval that holds for so few sessions."""
    pairs = [tuple(np.asarray(s[name])[:, None] for name in (base, other)) for s in sessions]
    if len(pairs) >= FEWEST_SESSIONS:
        return speedup([b for b, _ in pairs], [o for _, o in pairs])
    rounds = [median((b / o).ravel().tolist()) for b, o in pairs]
    low = min(found.interval.low for found in rounds) / (1 + LUCK)
    high = max(found.interval.high for found in rounds) * (1 + LUCK)
    value = float(np.median([found.value for found in rounds]))
    return Estimate(value, Interval(low, high, rounds[0].interval.confidence))


def clear(sessions: Sequence[Session], base: str, other: str) -> bool:
    """Whether these sessions surely tell the two apart."""
    return verdict(compared(sessions, base, other).interval) != "no difference"
