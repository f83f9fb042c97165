"""How fast graphs run on the target beside another, while a pass still chooses between them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgerun import __version__, registry
from edgerun.data import Data, Feeds
from edgerun.errors import EdgerunError
from edgerun.measure import brief
from edgerun.model import Model
from edgerun.runtime import Options, TensorSpec
from edgerun.verbs.clock import SESSION, EngineOf, Progress, feed_for, opened, usual_shapes
from edgerun.verbs.timings import Timings

if TYPE_CHECKING:
    import onnx_ir as ir

FIRST, SECOND = "first", "second"


class Pace:
    """A `passes.Timed` on `target`: one session a pair, on the first sample of `data` at the sizes that `inputs` say.

    Answers are kept by the content of both graphs (`verbs/timings.py`), and as long as this object where they cannot
    be. That a graph does not run is no answer: it may another time.
    """

    def __init__(self, target: str, inputs: Sequence[TensorSpec], data: Data | None, progress: Progress) -> None:
        self._target, self._inputs, self._data, self._progress = registry.target(target), inputs, data, progress
        self._answers: dict[tuple[str, str, float], float] = {}

    def __call__(self, first: ir.Model, bound: float) -> Callable[[ir.Model], float | None]:
        model = Model.of(first)
        digest = model.digest()
        engine = functools.cache(lambda: self._target.compile(model, self._options))  # as long as who asks keeps this

        def beside(second: ir.Model) -> float | None:
            other = Model.of(second)
            pair = digest, other.digest(), bound
            if pair not in self._answers:
                timings = Timings(self._about(pair))
                if (found := timings.get("ratio")) is None and (found := self._ratio(engine, other, bound)) is not None:
                    timings.put("ratio", found)
                if found is None:
                    return None
                self._answers[pair] = found
            return self._answers[pair]

        return beside

    def _about(self, pair: tuple[str, str, float]) -> dict[str, Any]:
        shapes = {name: [array.dtype.name, *array.shape] for name, array in self._feed.items()}
        usual = {name: list(shape) for name, shape in self._usual.items()}
        device = dict(self._target.device())
        return {"paced": list(pair), "feed": shapes, "usual": usual, "device": device, "edgerun": __version__}

    def _ratio(self, engine: EngineOf, other: Model, bound: float) -> float | None:
        """The time of a run of `other` over that of `engine`."""
        self._progress("timing", 0, 0)
        try:
            engines: dict[str, EngineOf] = {FIRST: engine, SECOND: lambda: self._target.compile(other, self._options)}
            open_ = functools.partial(opened, self._target, options=self._options, feed=self._feed)
            openers = {name: functools.partial(open_, of) for name, of in engines.items()}
            # A session that other work spoils goes on until its rounds agree, or all lie on one side.
            taken = brief.session(openers, 0, SESSION, lambda rounds: brief.beyond(rounds, SECOND, FIRST, bound))
        except EdgerunError:
            return None
        return 1 / brief.compared([taken], FIRST, SECOND).value

    @property
    def _options(self) -> Options:
        return Options(1, usual=self._usual)

    @functools.cached_property
    def _feed(self) -> Feeds:
        return feed_for(self._inputs, self._data)

    @functools.cached_property
    def _usual(self) -> dict[str, tuple[int, ...]]:
        return usual_shapes(self._inputs, self._data)
