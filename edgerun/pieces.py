"""A converted model in pieces, each to be judged by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """A piece of a converted model that computes on codes, with what the source fed it and what it made of that.

    `kind` is the source's operator; `wanted` are codes, or floats that are made of codes. `steps` are the codes by
    which the source's own rounding may differ from that of the same numbers in float.
    """

    kind: str
    run: Callable[[Arrays], dict[str, np.ndarray]]
    feeds: Arrays
    wanted: Arrays
    steps: int = 1
