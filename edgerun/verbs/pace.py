"""How fast one graph runs on the target beside another, while a pass still chooses between them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgerun import __version__, registry
from edgerun.data import Data, Feeds
from edgerun.errors import EdgerunError
from edgerun.measure import brief
from edgerun.model import Model
from edgerun.runtime import Engine, Options, TensorSpec
from edgerun.verbs.clock import SESSION, Progress, feed_for, usual_shapes
from edgerun.verbs.timings import Timings

if TYPE_CHECKING:
    import onnx_ir as ir


class Pace:
    """A `passes.Timed` on `target`: one session, on the first sample of `data` at the sizes that `inputs` say.

    Answers are kept by the content of both graphs (`verbs/timings.py`).
    """

    def __init__(self, target: str, inputs: Sequence[TensorSpec], data: Data | None, progress: Progress) -> None:
        self._target, self._inputs, self._data, self._progress = registry.target(target), inputs, data, progress
        self._engines: dict[str, Engine] = {}  # of the last first graph, which others may come beside, by its digest

    def __call__(self, first: ir.Model, second: ir.Model) -> float:
        models = {model.digest(): model for model in map(Model.of, (first, second))}
        shapes = {name: [array.dtype.name, *array.shape] for name, array in self._feed.items()}
        about: dict[str, Any] = {"paced": list(models), "feed": shapes, "edgerun": __version__}
        about |= {"device": dict(self._target.device()), "usual": {name: [*s] for name, s in self._usual.items()}}
        timings = Timings(about)
        if (known := timings.get("ratio")) is None:
            self._progress("timing", 0, 0)
            known = self._timed(models)
            timings.put("ratio", known)
        return float(known)

    def _timed(self, models: dict[str, Model]) -> float:
        names = list(models)
        try:
            for name in names:
                self._engines[name] = self._engines.get(name) or self._target.compile(models[name], self._options)
            taken = brief.session({name: functools.partial(self._opened, name) for name in names}, 0, SESSION)
        except EdgerunError:
            return math.inf
        finally:
            self._engines = {name: engine for name, engine in self._engines.items() if name == names[0]}
        return 1 / brief.compared([taken], names[0], names[-1]).value

    @contextmanager
    def _opened(self, name: str) -> Iterator[Callable[[], object]]:
        with self._target.load(self._engines[name], self._options) as session:
            yield lambda: session.run(self._feed)

    @property
    def _options(self) -> Options:
        return Options(1, usual=self._usual)

    @functools.cached_property
    def _feed(self) -> Feeds:
        return feed_for(self._inputs, self._data)

    @functools.cached_property
    def _usual(self) -> dict[str, tuple[int, ...]]:
        return usual_shapes(self._inputs, self._data)
