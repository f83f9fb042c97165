"""Benchmark: several models timed against each other, interleaved, in nine sessions each; the first is the baseline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import onnx_file, registry
from edgerun.data import Data, Feeds
from edgerun.devices import Device
from edgerun.errors import EdgerunError, GateFailed
from edgerun.measure import throughput as streamed
from edgerun.measure.latency import in_sessions
from edgerun.measure.stats import Estimate, Sessions, quantile, speedup, verdict
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Options, Session, TensorSpec, machine
from edgerun.verbs import devices
from edgerun.verbs.feeds import feeds_for, located, noise_for
from edgerun.verbs.load import load, target_for

BASELINE, OUTPUTS_DIFFER = "baseline", "outputs differ"
SESSIONS = 9  # the interval of their median leaves out the smallest and the largest: 96 %


@dataclass(frozen=True)
class Timing:
    """One model: seconds per run at three quantiles, and how many times faster than the baseline it is.

    `verdict` is 'faster', 'slower', 'no difference', 'baseline', or 'outputs differ' when a timed run did not
    give the same bits as a run outside the benchmark, or the baseline's did not: then the speed proves nothing.
    `runs` counts timed runs; `device` is the target's fingerprint, with the options that were given to it.
    `per_second` is None where latency alone was timed. Else it counts runs a second with `streams` at once, `speedup`
    is the ratio of these, and the quantiles are of the time from taking a feed to handing over its outputs.
    """

    model: str
    target: str
    runs: int
    p50: Estimate
    p90: Estimate
    p99: Estimate
    speedup: Estimate | None
    verdict: str
    device: Mapping[str, str]
    streams: int = 1
    per_second: Estimate | None = None


@dataclass(frozen=True)
class Benchmark:
    """All timings of one run: samples per feed, rounds in all, how often each model was opened anew, threads asked for
    (0: the quota), and what was fed."""

    timings: tuple[Timing, ...]
    batch: int | None
    rounds: int
    sessions: int
    threads: int
    feed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def not_faster(self) -> tuple[Timing, ...]:
        """The models that this run does not show to be faster than the baseline."""
        return tuple(t for t in self.timings[1:] if t.verdict != "faster")

    def require_faster(self) -> None:
        """Raise GateFailed unless every model after the first is faster than it."""
        if self.not_faster:
            got = ", ".join(f"{t.model}: {t.verdict}" for t in self.not_faster)
            raise GateFailed("not an improvement", got=got, wanted=f"faster than {self.timings[0].model}")


def benchmark(
    models: Sequence[str | Path],
    *,
    target: str | None = None,
    device: Device | str | Path | None = None,
    options: Options | Sequence[Options] | None = None,
    data: Any = None,
    preprocessing: Preprocessing | str | Path | None = None,
    batch: int | None = None,
    shapes: Sequence[TensorSpec | str] = (),
    seconds: float = 10.0,
    rounds: int = 108,
    throughput: bool = False,
    checked: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Benchmark:
    """Time `models` (files, or `PATH@TARGET`) on one feed, the first batch of `data`, interleaved.

    `options` are for all of them, or one for each: the same file may be there several times, with others each time.
    All are opened together nine times, for an equal share of `rounds` and `seconds` (opening not counted).
    With `throughput` the runs a second of `Session.stream` are compared, of as many streams as the options say; without
    options a stream for each thread of the quota. `checked` models are compared with the reference first, as in
    `edgerun.load`.
    Without `data` the feed is seeded noise, and the result says so. `batch` counts where the models leave it open
    (default 1). `shapes` (`name:[1,3,224,224]`) fix dynamic dimensions. `progress` gets the share done.
    With `device`, a known one or a file, nothing is timed unless this machine may be it.
    All models get the same bytes; raises EdgerunError when one does not take them.
    """
    if not models:
        raise EdgerunError("no model to time", wanted="at least one")
    if device is not None:
        known, target = devices.chosen(device, target)
        devices.here(known, target)
    options = options or Options(streams=machine.quota() if throughput else 1)
    told = [options] * len(models) if isinstance(options, Options) else list(options)
    if len(told) != len(models):
        raise EdgerunError("options are for all models, or one for each", got=len(told), wanted=str(len(models)))
    if len({own.threads for own in told}) > 1:
        raise EdgerunError("models are timed with one number of threads", got=[own.threads for own in told])
    places = [located(model, target) for model in models]
    targets = [own or target_for(path.suffix) for path, own in places]
    names = _names([str(path) for path, _ in places], targets)
    openers = {
        name: partial(load, path, where, own)
        for name, (path, _), where, own in zip(names, places, targets, told, strict=True)
    }
    with ExitStack() as stack:
        opened = {name: stack.enter_context(opener(checked=checked)) for name, opener in openers.items()}
        feeds = batch_for(agreed(opened, shapes, places[0][0]), places[0][0], data, preprocessing, batch)
        feed = next(iter(feeds))
        runs = {name: _Run(openers[name], feed, session.run(feed)) for name, session in opened.items()}
    samples, times = _timed(
        runs, throughput, sessions=SESSIONS, rounds=-(-rounds // SESSIONS), seconds=seconds, progress=progress
    )
    timings: list[Timing] = []
    for name, where, own in zip(names, targets, told, strict=True):
        same = runs[name].same and not (timings and timings[0].verdict == OUTPUTS_DIFFER)
        timing = _timing(name, where, own, times[name], samples[name], samples[names[0]] if timings else None, same)
        if throughput:
            rate = quantile([1 / session for session in samples[name]], 0.5)
            timing = replace(timing, streams=opened[name].streams, per_second=rate)
        timings.append(timing)
    done = sum(map(len, samples[names[0]]))
    shown = tuple(str(TensorSpec(name, array.dtype.name, array.shape)) for name, array in feed.items())
    return Benchmark(tuple(timings), feeds.batch, done, SESSIONS, told[0].threads, shown, feeds.notes)


def _timed(runs: Mapping[str, _Run], throughput: bool, **share: Any) -> tuple[dict[str, Sessions], dict[str, Sessions]]:
    # By name, seconds per run [rounds, …] of each session, and seconds that runs took: the same ones, one by one.
    if not throughput:
        alone: dict[str, Sessions] = {**in_sessions({name: run.opened for name, run in runs.items()}, **share)}
        return alone, alone
    found = streamed.in_sessions({name: run.streaming for name, run in runs.items()}, **share)
    apart: dict[str, Sessions] = {name: [one.apart for one in sessions] for name, sessions in found.items()}
    return apart, {name: [one.under_way for one in sessions] for name, sessions in found.items()}


class _Run:
    """Runs a model on one feed; `same` while the last runs of every session gave the bits of `reference`."""

    def __init__(self, opener: Callable[[], Session], feed: Feeds, reference: Feeds) -> None:
        self._opener, self._feed, self._reference = opener, feed, reference
        self.same = True

    @contextmanager
    def opened(self) -> Iterator[Callable[[], None]]:
        """One new session of the model, as a function to time."""
        last: Feeds = {}
        with self._opener() as session:

            def run() -> None:
                nonlocal last
                last = session.run(self._feed)

            yield run
        self._compare(last)

    @contextmanager
    def streaming(self) -> Iterator[streamed.Streaming]:
        """One new session of the model, as streams to time."""
        with self._opener() as session:
            last = deque[Feeds](maxlen=streamed.IN_FLIGHT * session.streams)

            def start(ticks: Iterator[None]) -> Iterator[None]:
                for outputs in session.stream(self._feed for _ in ticks):
                    last.append(outputs)
                    yield

            yield streamed.Streaming(session.streams, start)
        for outputs in last:
            self._compare(outputs)

    def _compare(self, outputs: Feeds) -> None:
        self.same = self.same and all(
            np.array_equal(outputs[name], value, equal_nan=value.dtype.kind == "f")
            for name, value in self._reference.items()
        )


def _names(paths: Sequence[str], targets: Sequence[str]) -> list[str]:
    """What to call each model: its path, with `@target` where targets differ, and `#2` where one is timed twice."""
    plain = paths if len(set(targets)) == 1 else [f"{p}@{t}" for p, t in zip(paths, targets, strict=True)]
    names: list[str] = []
    for name in plain:
        earlier = sum(n == name or n.startswith(f"{name}#") for n in names)
        names.append(f"{name}#{earlier + 1}" if earlier else name)
    return names


def agreed(
    sessions: Mapping[str, Session], shapes: Sequence[TensorSpec | str], path: Path
) -> tuple[TensorSpec, ...]:  # fmt: skip
    """The inputs of the first model, in `path`, with dynamic dimensions fixed by `shapes`, else by a later model that
    fixes them."""
    first = next(iter(sessions.values())).inputs
    bare = onnx_file.told(path).bare if path.suffix == ".onnx" else ()
    for spec in first:
        if spec.name in bare and spec.kind == "tensor":  # which runtimes take for a scalar
            do = f"edgerun convert {path} -o NAME.onnx --input '{spec.name}:{spec.dtype}[…]', as in [n,3,224,224]"
            raise EdgerunError(f"input {spec.name!r} has no shape in the file", do=do)
    agreed = {spec.name: spec for spec in fixed(first, shapes)}
    for model, session in sessions.items():
        same = [(s.name, s.dtype) for s in session.inputs] == [(s.name, s.dtype) for s in first]
        if not (same and all(map(_fits, first, session.inputs))):
            got = ", ".join(map(str, session.inputs))
            raise EdgerunError(
                "the models have different inputs", got=f"{model}: {got}", wanted=", ".join(map(str, first))
            )
        for spec in session.inputs:
            agreed[spec.name] = _merged(agreed[spec.name], spec, model)
    return tuple(agreed.values())


def fixed(inputs: Sequence[TensorSpec], shapes: Sequence[TensorSpec | str]) -> tuple[TensorSpec, ...]:
    """`inputs` with dynamic dimensions fixed by `shapes`. Raises EdgerunError for one that does not fit."""
    asked = {spec.name: spec for spec in (TensorSpec.parse(s) if isinstance(s, str) else s for s in shapes)}
    if len(inputs) == 1 and "" in asked:
        asked[inputs[0].name] = asked.pop("")
    if surplus := sorted(set(asked) - {spec.name for spec in inputs}):
        raise EdgerunError(f"there is no input {surplus[0]!r}", wanted=", ".join(map(str, inputs)))
    return tuple(_merged(s, asked[s.name], "the shape asked for") if s.name in asked else s for s in inputs)


def _merged(spec: TensorSpec, other: TensorSpec, who: str) -> TensorSpec:
    if not _fits(spec, other):
        raise EdgerunError(
            f"{who} does not fit input {spec.name!r}", got=list(other.shape), wanted=str(list(spec.shape))
        )
    return replace(
        spec, shape=tuple(a if isinstance(a, int) else b for a, b in zip(spec.shape, other.shape, strict=True))
    )


def _fits(spec: TensorSpec, other: TensorSpec) -> bool:
    pairs = zip(spec.shape, other.shape, strict=False)
    return len(spec.shape) == len(other.shape) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in pairs
    )


def batch_for(inputs: Sequence[TensorSpec], model: Path, data: Any, preprocessing: Any, batch: int | None) -> Data:
    """What models with these inputs are timed on: `data` in batches, or else one batch of seeded noise."""
    given: dict[str, Any] = {"preprocessing": preprocessing, "batch": batch or 1}
    if data is None:
        fixed = inputs[0].shape[:1] if inputs else ()
        samples = int(fixed[0]) if fixed and isinstance(fixed[0], int) else batch or 1
        feeds = noise_for(inputs, model, samples, **given)
    else:
        feeds = feeds_for(inputs, model, data, **given)
    if batch is not None and feeds.batch != batch:
        got = "no batch axis" if feeds.batch is None else f"a batch fixed at {feeds.batch}"
        raise EdgerunError("the batch asked for does not fit the models", got=got, wanted=str(batch))
    if feeds.samples is not None and feeds.samples < (feeds.batch or 1):
        raise EdgerunError("the data does not fill one batch", got=f"{feeds.samples} samples", wanted=str(feeds.batch))
    return feeds


def _timing(
    name: str, target: str, options: Options, times: Sessions, samples: Sessions, baseline: Sessions | None, same: bool
) -> Timing:
    against = None if baseline is None else speedup(baseline, samples)
    answer = BASELINE if against is None else verdict(against.interval)
    p50, p90, p99 = (quantile(times, q) for q in (0.5, 0.9, 0.99))
    device = {**registry.target(target).device(), **options.extra}
    runs = sum(s.size for s in times)
    return Timing(name, target, runs, p50, p90, p99, against, answer if same else OUTPUTS_DIFFER, device)
