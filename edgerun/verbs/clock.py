"""The clock: is a compressed model faster than its float one on the target?

Float and compressed model are timed interleaved (`measure/brief.py`), on one thread and one sample. All that is timed
is kept by content (`verbs/timings.py`), so that the same answer is given again without timing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgerun import __version__, registry
from edgerun.batches import cuttable, fitted
from edgerun.data import Data, Feeds
from edgerun.errors import EdgerunError
from edgerun.measure import attribution, brief
from edgerun.measure.proposals import Layer, layers
from edgerun.measure.stats import Estimate, verdict
from edgerun.model import Model
from edgerun.runtime import Engine, Options, TensorSpec
from edgerun.target import Target
from edgerun.verbs.feeds import noise_for
from edgerun.verbs.timings import Timings

FLOAT, RULES, TUNED = "fp32", "rules", "tuned"
AS_FAST = 0.98  # what is not surely faster is written down to this estimate, with a warning
SESSION = 0.1  # seconds of timing per session and pair of models
PROFILE = 0.3  # seconds of profiling, between FEWEST and MOST runs
FEWEST, MOST = 10, 30

Progress = Callable[[str, int, int], None]
Kept = Mapping[str, str]  # node -> why it stays float
EngineOf = Callable[[], Engine]
Usual = Mapping[str, tuple[int, ...]]  # Options.usual


@dataclass(frozen=True)
class Budget:
    """How long to look: the verdict takes `share` of the time that the compression took, or `least` seconds; the
    search `steps` rounds of `width` placements, for `patience` times the compression or at least `patience` minutes.
    `always`: placements are searched even where the rules' one is surely faster."""

    share: float
    least: float
    steps: int
    width: int
    patience: float
    always: bool = False


BUDGETS = {
    "fast": Budget(0.05, 5.0, 0, 0, 0.0),
    "default": Budget(0.1, 10.0, 2, 4, 0.5),
    "best": Budget(0.5, 30.0, 6, 6, 3.0, always=True),
}


@dataclass(frozen=True)
class Speed:
    """What the clock says of a compressed model against its float one, one thread, interleaved.

    `answer` is 'faster', 'slower' (both surely, by a hundredth), 'no difference' (neither can be told), or 'not timed',
    for the `reason` (elsewhere: why the timings could not be kept). `kept` are nodes that stay float, each with its
    reason; `tried` counts the placements that were timed beside the rules' own. `earlier`: nothing was timed now, the
    same models were before.
    """

    answer: str
    speedup: Estimate | None = None
    sessions: int = 0
    rounds: int = 0
    feed: tuple[str, ...] = ()
    kept: Kept = field(default_factory=dict)
    tried: int = 0
    earlier: bool = False
    reason: str = ""

    @property
    def pays(self) -> bool:
        """Whether the model may be called a result: not surely slower, nor by more than 2 % on the whole."""
        if self.speedup is None or self.answer == "faster":
            return True
        return self.answer != "slower" and self.speedup.value >= AS_FAST

    def to_json(self) -> dict[str, Any]:
        """JSON values; the speed-up with its 95 % interval, 1 for equal."""
        told: dict[str, Any] = {"answer": self.answer, "kept float": dict(self.kept), "placements tried": self.tried}
        if self.speedup is None:
            return {**told, "reason": self.reason}
        interval = [self.speedup.interval.low, self.speedup.interval.high]
        told |= {"speed-up": self.speedup.value, "interval (95 %)": interval, "sessions": self.sessions}
        return {**told, "rounds": self.rounds, "threads": 1, "fed": list(self.feed), "timed earlier": self.earlier}

    def __str__(self) -> str:
        if self.speedup is None:
            return f"not timed: {self.reason}"
        low, high = self.speedup.interval.low, self.speedup.interval.high
        counts = f"{self.sessions} session{'s' if self.sessions > 1 else ''} of {brief.ROUNDS} rounds or more"
        return f"{self.speedup.value:.2f} [{low:.2f}, {high:.2f}] times as fast as fp32 (95 %, {counts}, one thread)"


class Clock:
    """Times engines on one target and one feed, and knows what was timed before."""

    def __init__(
        self, original: Model | str | Path, target: str, feed: Feeds, timings: Timings, budget: Budget,
        began: float, progress: Progress, usual: Usual,
    ) -> None:  # fmt: skip
        self.budget, self.timings, self.took = budget, timings, perf_counter() - began
        self.target, self._target, self._feed, self._progress = target, registry.target(target), feed, progress
        self.float = functools.cache(lambda: self._float(original))
        # Both sides know the shapes that the result will know.
        self._options = Options(1, usual=usual)
        self.timed = False

    @property
    def feed(self) -> tuple[str, ...]:
        """What is fed, as text."""
        return tuple(str(TensorSpec(name, array.dtype.name, array.shape)) for name, array in self._feed.items())

    def compiled(self, model: Model) -> Engine:
        """The engine of `model`."""
        return self._target.compile(model, self._options)

    def known(self, label: str) -> list[brief.Session]:
        """The sessions of `label` that were timed before."""
        return list((self.timings.get(label) or {"sessions": []})["sessions"])

    def sessions(
        self, label: str, engines: Mapping[str, EngineOf], settled: Callable[[Sequence[brief.Session]], bool],
        seconds: float,
    ) -> list[brief.Session]:  # fmt: skip
        """Sessions of `engines`, those of `label` that are known first, until they are `settled` at a look, or further
        ones would take longer than `seconds` in all."""
        taken = self.known(label)
        if taken and self.timings.get(label)["ended"]:
            return taken
        self._progress("timing", len(taken), brief.LOOKS[-1])
        openers = {
            n: functools.partial(opened, self._target, of, self._options, self._feed) for n, of in engines.items()
        }
        end, each = perf_counter() + seconds, 0.0
        for look in brief.LOOKS:
            if taken and perf_counter() + each * (look - len(taken)) > end:
                break
            while len(taken) < look:
                start = perf_counter()
                seconds_each = SESSION * len(openers) / 2
                taken.append(brief.session(openers, len(taken), seconds_each, lambda one: settled([*taken, one])))
                self.timed, each = True, perf_counter() - start
                self.timings.put(label, {"sessions": taken, "ended": False})
                self._progress("timing", len(taken), brief.LOOKS[-1])
            if settled(taken):
                break
        self.timings.put(label, {"sessions": taken, "ended": True})
        return taken

    def layers(self, place: str, engine: EngineOf, names: Sequence[str]) -> tuple[list[Layer], float]:
        """Where `engine` gains and loses against the float one, and seconds of all its kernels; once per `place`."""
        if (told := self.timings.get(f"layers {place}")) is None:
            self._progress("profiling", 0, 0)
            try:
                before, after = (self._profile(of()) for of in (self.float, engine))
                found = layers(attribution.align(before, after), set(names))
            except EdgerunError:  # a profile that cannot be read proposes nothing
                after, found = [], []
            told = {
                "layers": [[list(x.nodes), x.saved, x.cause] for x in found],
                "total": sum(k.seconds for k in after),
            }
            self.timings.put(f"layers {place}", told)
        return [Layer(tuple(nodes), saved, cause) for nodes, saved, cause in told["layers"]], told["total"]

    def _profile(self, engine: Engine) -> list[Any]:
        with self._target.load(engine, self._options) as session:
            session.run(self._feed)
            start = perf_counter()
            session.run(self._feed)
            count = int(np.clip(PROFILE / (perf_counter() - start), FEWEST, MOST))
        return self._target.profile(engine, itertools.repeat(self._feed, count), self._options)

    def _float(self, original: Model | str | Path) -> Engine:
        if not isinstance(original, Model) and Path(original).suffix in self._target.suffixes:
            return Engine(self.target, Path(original))  # its weights need no place in memory twice
        return self.compiled(original if isinstance(original, Model) else Model.load(original))


@contextmanager
def opened(target: Target, engine: EngineOf, options: Options, feed: Feeds) -> Iterator[Callable[[], object]]:
    """A run of an engine on `feed`, to be timed."""
    with target.load(engine(), options) as session:
        yield lambda: session.run(feed)


def clock_for(
    original: Model | str | Path, rules: Model, target: str, feed: Feeds, preset: str, began: float, progress: Progress,
    usual: Usual,
) -> Clock:  # fmt: skip
    """A clock for the compression of `original` that gave `rules` and began at `began` (perf_counter)."""
    last, device = rules.history[-1], dict(registry.target(target).device())
    shapes = {name: [array.dtype.name, *array.shape] for name, array in feed.items()}
    key = {"float": last.before, "rules": last.after, "device": device, "edgerun": __version__, "feed": shapes,
           "usual": {name: list(shape) for name, shape in usual.items()}}  # fmt: skip
    return Clock(original, target, feed, Timings(key), BUDGETS[preset], began, progress, usual)


def feed_for(inputs: Sequence[TensorSpec], data: Data | None) -> Feeds:
    """What models are timed on: the first sample of `data` that can be cut, or noise, at the sizes that `inputs` say.

    An axis that is longer than an input says is cut, a shorter one is repeated.
    """
    if data is None:
        return next(iter(noise_for(inputs, "", 1, 1)))
    sized = list(inputs)
    for feed in data.in_batches(1):
        own = {s.name: [d if isinstance(d, int) else n for d, n in zip(s.shape, feed[s.name].shape, strict=True)]
               for s in inputs}  # fmt: skip
        if cuttable(feed, own, data.inputs):
            return fitted(feed, own)
        sized = [replace(spec, shape=tuple(own[spec.name])) for spec in inputs]
    return next(iter(noise_for(sized, "", 1, 1)))


def usual_shapes(inputs: Sequence[TensorSpec], data: Data | None) -> dict[str, tuple[int, ...]]:
    """The shapes of most feeds on the device, as far as they are known: as `inputs` say, else those of all samples of
    `data`, one at a time. {} where samples differ in what is left open, or nothing says it."""
    first = 0 if data is None or data.batch is None else 1
    if data is not None and any(isinstance(dim, str) for s in inputs for dim in s.shape[first:]) and not data.uniform:
        return {}
    try:
        return {name: array.shape for name, array in feed_for(inputs, data).items()}
    except EdgerunError:  # noise needs every size
        return {}


def judged(clock: Clock, engines: Mapping[str, EngineOf], name: str, digest: str = "") -> Speed:
    """The verdict on the engine `name`, against the float one and the other `engines`; `digest` tells apart those that
    have one name."""
    rivals = [FLOAT, *(other for other in engines if other != name)]
    sessions = clock.sessions(
        label(name, digest), {FLOAT: clock.float, **engines},
        lambda taken: all(brief.clear(taken, rival, name) for rival in rivals),
        max(clock.budget.least, clock.budget.share * clock.took),
    )  # fmt: skip
    found = brief.compared(sessions, FLOAT, name)
    rounds = sum(len(session[name]) for session in sessions)
    return Speed(verdict(found.interval), found, len(sessions), rounds, clock.feed, earlier=not clock.timed)


def label(name: str, digest: str) -> str:
    """What the timings of an engine are kept under."""
    return f"{name} {digest}".strip()


def not_timed(error: EdgerunError) -> Speed:
    """The answer where a model cannot be timed."""
    told = f"{error.what}: {error.got}" if error.got else error.what
    return Speed("not timed", reason=f"{told}; {error.do}" if error.do else told)
