"""What a source computes inside, to find where a converted model leaves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tap:
    """The source's numbers at one value of the converted model, and `source`, the place where it computes them."""

    source: str
    value: np.ndarray


# From feeds to taps, by the names of the model's values. A name that the graph has no more is no mistake.
Taps = Callable[[Mapping[str, np.ndarray]], Mapping[str, Tap]]
