"""A float model that is ready to be quantized, and how it becomes that: which steps make it easier to round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _evened, _rounding, _sequences, _steps
from edgerun.quantize._observation import Truth, with_moved_means
from edgerun.quantize.graphs import placement
from edgerun.quantize.graphs.activation import Activation, Vectors

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request


@dataclass(frozen=True)
class Prepared:
    """A float model ready to be quantized: folded and equalized, with what was seen of its activations.

    `truths` are the float model's answers to the first batches of the calibration data; `codes`, by node name, those of
    weights that are not rounded to nearest. `original` is the folded model as it was, where it has recurrent layers,
    and `settled` what was found out about these, once for all that is made of it. `left` are layers, by name, of whose
    activations nothing was seen, since the rules leave them in float: with more layers there, they must not come back.
    """

    model: ir.Model
    original: ir.Model | None
    seen: Mapping[str, Activation]
    truths: list[Truth]
    codes: Mapping[str, np.ndarray]
    settled: _sequences.Settled = field(default_factory=dict)
    left: frozenset[str] = frozenset()

    def copy(self) -> Prepared:
        """The same on a clone, since `finish` consumes the model; the weights are shared."""
        return replace(self, model=self.model.clone())


@dataclass(frozen=True)
class Observed:
    """A folded float model as it is, what was `seen` of its activations, and its answers.

    `fit` is what three batches in four tell of the activations, for trials that every fourth one judges.
    """

    model: ir.Model
    original: ir.Model | None
    seen: Mapping[str, Activation]
    truths: list[Truth]
    fit: Mapping[str, Activation] = field(default_factory=dict)

    def copy(self) -> Observed:
        """The same on a clone, since `prepared` consumes the model; the weights are shared."""
        return replace(self, model=self.model.clone())

    def prepared(self, request: Request, without: frozenset[str] = frozenset()) -> Prepared:
        """Every step (`_steps`) taken but those `without`; `model` is changed in place."""
        plan = placement.plan(self.model.graph, request.rules, request.keep_float)
        seen, means = _evened.apply(self.model, plan, self.seen, request, without)
        codes: dict[str, np.ndarray] = {}
        if _steps.ROUNDED not in without:
            plan = placement.plan(self.model.graph, request.rules, request.keep_float)
            codes = _rounding.codes(plan, seen, request)
        seen = {name: replace(activation, vectors=Vectors()) for name, activation in seen.items()}
        truths = [with_moved_means(truth, means) for truth in self.truths]
        return Prepared(self.model, self.original, seen, truths, codes)
