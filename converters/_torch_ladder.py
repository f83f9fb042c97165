"""The ladder of routes: the first whose graph holds beyond its example; else why each failed, and what would do."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgerun import draws
from edgerun.converters import _ort, _torch_export, _torch_reasons, _torch_rewrites
from edgerun.converters._torch_call import Call
from edgerun.converters._torch_dims import observed
from edgerun.converters._torch_export import Exported, Route
from edgerun.errors import Unsupported
from edgerun.metrics import Difference
from edgerun.passes import Feeds
from edgerun.runtime import TensorSpec

log = logging.getLogger("edgerun")
LOOSE = 1e-2  # relative error that tells another computation from rounding; parity judges what passes
BRANCH_DRAWS = 16  # random inputs that a graph with one side of a branch is tried on

EXPORT: tuple[str, Route] = ("torch.export", _torch_export.exported)
TRACE: tuple[str, Route] = ("TorchScript tracing", _torch_export.traced)
SCRIPT: tuple[str, Route] = ("TorchScript scripting", _torch_export.scripted)


@dataclass(frozen=True)
class Attempt:
    """One route that was tried, and in one line why it failed ("" where it worked)."""

    route: str
    reason: str = ""


class NotExported(Unsupported):
    """No route gave a graph that holds; `tried` says what was tried."""

    tried: tuple[Attempt, ...] = ()


class Ladder:
    """What was tried on one call, in order; `climb` returns the first graph that holds, or None."""

    def __init__(self, call: Call, example: Feeds, opset: int) -> None:
        self.call, self.example, self.opset = call, example, opset
        self.tried: list[Attempt] = []
        self.fallback: tuple[str, Exported] | None = None

    def climb(self, routes: Sequence[tuple[str, Route]], call: Call | None = None, how: str = "") -> Exported | None:
        """The first route's graph that holds; one that follows one side of a branch, or differs, is kept aside.

        `call` is what is exported, `self.call` what its results are compared with.
        """
        for name, route in routes:
            name = f"{name}{how}"
            try:
                with _silent():
                    found = route(call or self.call, self.example, self.opset)
                    reason, may = self._check(found)
            except Exception as error:  # exporters raise dozens of classes
                found, reason, may = None, _torch_reasons.reason(error), False
            if not reason:
                self.tried.append(Attempt(name))
                log.info("exported by %s", name)
                return found
            if found is not None and may and self.fallback is None:
                self.fallback = (name, found)
            self.tried.append(Attempt(name, reason))
            log.info("%s cannot export this model: %s", name, reason)
        return None

    def settle(self) -> Exported | None:
        """The graph that was kept aside, when nothing holds: the comparison with the source will judge it."""
        if self.fallback is None:
            return None
        name, found = self.fallback
        log.warning("exported by %s, although: %s", name, next(a.reason for a in self.tried if a.route == name))
        return found

    def _check(self, found: Exported) -> tuple[str, bool]:
        """Why the graph does not hold for other sizes and values ("" if it does); may it be judged yet?"""
        run = _ort.runner(found.proto)
        seen: list[tuple[Feeds, dict[str, np.ndarray]]] = []
        for feeds in [self.example, *self._others(BRANCH_DRAWS if found.branches else 1)]:
            try:
                wanted = self.call.run(feeds)
            except Exception:  # the source's own complaint about a shape or a value
                continue
            sizes = ", ".join(f"{name}{list(value.shape)}" for name, value in feeds.items())
            try:
                got = run(feeds)
            except Exception as error:  # the runtime's own exceptions
                return f"the graph holds for the example's sizes only: on {sizes}: {_ort.first_line(error)}", False
            for name, want in wanted.items():
                if got[name].shape != want.shape:
                    shapes = f"{list(got[name].shape)}, the source {list(want.shape)}"
                    return f"the graph holds for the example's sizes only: on {sizes}, {name!r} has {shapes}", False
                off = Difference.of(want, got[name]).relative_error
                if not off <= LOOSE:
                    where = f" (one side of a branch at {', '.join(found.branches)})" if found.branches else ""
                    return f"it computes something else{where}: on {sizes}, {name!r} is off by {off:.2g}", not where
            seen.append((feeds, wanted))
        found.proto = observed(found.proto, self.call.specs, seen)
        if found.branches:
            return f"the graph has one side of each branch on data, at {', '.join(found.branches)}", True
        return "", True

    def _others(self, count: int) -> list[dict[str, np.ndarray]]:
        """Random feeds in sizes that the source takes: batch 3 and other sizes of their own, where it can."""
        specs = self.call.specs
        known = {d: n for s in specs for d, n in zip(s.shape, self.example[s.name].shape, strict=True)}
        plain = draws.sizes(specs, 3, max([n for d, n in known.items() if isinstance(d, str)], default=1))
        batch = {d for d, n in draws.sizes(specs, -1, 0).items() if n}
        apart = {d: n if d in batch else n * (2 + i) for i, (d, n) in enumerate(sorted(plain.items()))}
        twice = {d: n if d in batch else n * 2 for d, n in plain.items()}
        for sizes in (apart, twice, plain):
            feeds = draws.feeds(specs, sizes, seed=1)
            with contextlib.suppress(Exception):  # the source's own complaint about a shape
                self.call.run(feeds)
                return [feeds, *(draws.feeds(specs, sizes, seed=2 + n) for n in range(count - 1))]
        return []


def export(call: Call, example: Feeds, opset: int) -> tuple[Exported, list[Attempt]]:
    """The model as ONNX, by the first route that holds, and what was tried.

    Raises Unsupported when none does: with the sizes to fix, where that would help.
    """
    import torch

    ladder = Ladder(call, example, opset)
    if isinstance(call.module, torch.jit.ScriptModule):
        found = ladder.climb([("TorchScript", _torch_export.scripted)])
    else:
        found = ladder.climb([EXPORT, TRACE, SCRIPT])
        for name, twin in () if found else _torch_rewrites.rewritten(call, example):
            found = found or ladder.climb([EXPORT, TRACE], twin, f" with {name}")
    found = found or ladder.settle()
    if found is not None:
        return found, ladder.tried
    fixed = None if isinstance(call.module, torch.jit.ScriptModule) else _fixed(call, opset)
    refused = NotExported(
        "PyTorch exports this model with fixed sizes only" if fixed else "PyTorch cannot export this model to ONNX",
        got="\n    ".join(f"{attempt.route}: {attempt.reason}" for attempt in ladder.tried),
        wanted="dimensions that the source leaves free" if fixed else None,
        do="fix them, at the sizes that you need: " + " ".join(f"--input '{s}'" for s in fixed)
        if fixed
        else _torch_reasons.advice(ladder.tried),
    )
    refused.tried = tuple(ladder.tried)
    raise refused


def _fixed(call: Call, opset: int) -> tuple[TensorSpec, ...] | None:
    """The specs with the fewest kinds of dimensions fixed that a route can export: others, the batch, all."""
    example = call.example()
    sizes = {
        d: n for s in call.specs for d, n in zip(s.shape, example[s.name].shape, strict=True) if isinstance(d, str)
    }
    batch = {d for d, n in draws.sizes(call.specs, 1, 0).items() if n}
    groups = [set(sizes) - batch, batch, set(sizes)]
    for group in [g for i, g in enumerate(groups) if g and g not in groups[:i]]:
        shapes = [tuple((1 if d in batch else sizes[d]) if d in group else d for d in s.shape) for s in call.specs]
        specs = tuple(replace(s, shape=shape) for s, shape in zip(call.specs, shapes, strict=True))
        fixed = Call(call.module, specs, call.positional)
        try:
            again = fixed.example()
        except Exception:  # the source refuses that size
            continue
        with unlogged():
            ladder = Ladder(fixed, again, opset)
            if ladder.climb([EXPORT, TRACE]) is not None or ladder.fallback is not None:
                return specs
    return None


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """A trial whose failures are no news."""
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what exporters print: Python's to sys.stdout and sys.stderr, C++'s to the process's own streams."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        kept = [(stream, os.dup(stream)) for stream in (1, 2)]
        for stream, _ in kept:
            os.dup2(nowhere.fileno(), stream)
        try:
            yield
        finally:
            for stream, copy in kept:
                os.dup2(copy, stream)
                os.close(copy)
