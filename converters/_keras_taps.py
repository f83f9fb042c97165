"""What a Keras source computes inside, by the names of the values that stand for it in the converted graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgerun.converters._layout import Value
from edgerun.passes import Feeds, Runner
from edgerun.taps import Tap, Taps


@dataclass(frozen=True)
class Written:
    """A symbolic tensor of the model, the operation that makes it, and the Value that was written for it."""

    tensor: Any
    operation: Any
    value: Value


def of(model: Any, written: Sequence[Written], runner: Callable[[Any, Sequence[str]], Runner]) -> Taps:
    """Every result of a layer or operation of the model's own graph, from one run of the source that returns them all.

    `runner` makes a model, and names for its outputs, a function of feeds. The inside of a nested model is not told.
    """

    def taps(feeds: Feeds) -> Mapping[str, Tap]:
        from keras import Model  # type: ignore[import-untyped]

        known: dict[str, Written] = {}
        for one in written:
            known.setdefault(one.value.name, one)  # Dropout's result is the value that goes in
        results = runner(Model(model.inputs, [one.tensor for one in known.values()]), list(known))(feeds)
        return {name: Tap(_told(one), one.value.lying(results[name])) for name, one in known.items()}

    return taps


def _told(one: Written) -> str:
    return f"the result of {one.operation.name} ({type(one.operation).__name__})"
