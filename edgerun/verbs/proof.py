"""The proof of what `compress` made: compiled for its target and compared with the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgerun import draws, registry
from edgerun.errors import Unsupported
from edgerun.model import Model
from edgerun.passes import Target
from edgerun.runtime import Engine, Options, Session
from edgerun.verbs.compile import built, compile


def idle(chosen: Target, target: str, output: str | Path | None, max_drop: float | None) -> str | None:
    """Why nothing runs on the target here, if so. Raises Unsupported when what is asked for would have to."""
    reason = chosen.runnable()
    if reason and max_drop is not None:
        do = f"hold the bound where {target} runs, or compress without --max-drop"
        raise Unsupported(f"a bound on the drop is measured on {target}", got=reason, do=do)
    if reason and output is not None and Path(output).suffix != ".onnx":
        what = f"{Path(output).name} could not be compared with the reference here, so it is not written"
        raise Unsupported(what, got=reason, do=f"write .onnx; {target} compiles it where it runs")
    return reason


def proven(
    result: Model,
    original: Model | str | Path,
    target: str,
    feeds: Sequence[Mapping[str, np.ndarray]],
    measurer: str,
    usual: Mapping[str, tuple[int, ...]],
    judge: Callable[[Session], None],
) -> Engine:
    """The engine of `result`, for feeds that are `usual`, compared with the reference on `feeds` at the usual shapes
    and at one other; then its session goes to the `judge`.

    Where no engine of the target runs, it is compiled, and the graph itself is compared with the target `measurer`.
    """
    options = Options(sizes=_sizes(result, feeds), usual=usual)
    if registry.target(target).runnable():
        engine = built(result, target, options)
        compile(result, measurer, feeds=feeds, original=original)
        return engine
    return compile(result, target, options, feeds=feeds, original=original, whole=False, judge=judge)


def _sizes(model: Model, feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[int, int, int]]:
    """The least, the first and the most of each open dimension that is not a batch, as the data has them."""
    seen: dict[str, list[int]] = {}
    for feed in feeds:
        for spec in model.inputs:
            for dim, size in zip(spec.shape, feed[spec.name].shape, strict=True):
                if isinstance(dim, str):
                    seen.setdefault(dim, []).append(size)
    batches = {dim for dim, size in draws.sizes(model.inputs, 1, 0).items() if size}
    return {dim: (min(found), found[0], max(found)) for dim, found in seen.items() if dim not in batches}
