"""A model compiled for one target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError, unknown
from edgerun.runtime import machine
from edgerun.runtime.spec import TensorSpec

if TYPE_CHECKING:
    from edgerun.runtime.selfcheck import SelfCheck


@dataclass(frozen=True)
class Options:
    """How a target shall run: `threads` (0: the cgroup's quota), and `extra` target-specific keys.

    `streams` runs are under way at once and share the threads out among them: 1 for the shortest time of a run, the
    number of threads for the most runs a second.
    `sizes` are the least, the usual and the most of a model's symbolic dimensions by name, for targets that compile for
    a range of sizes, or for several, one behind the other; others take any size whatever stands here.
    `max_rss` bounds the resident memory of the whole process in bytes (0: no bound): targets hold what they can below
    it, and `edgerun.load` measures. A model that opens, or a run that ends, above it is a GateFailed.
    `usual` are the shapes that most feeds have, by input: targets whose kernels are faster for known shapes have them
    ready for these. Feeds of other shapes run as ever.
    """

    threads: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    streams: int = 1
    max_rss: int = 0
    usual: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in ("threads", "streams", "max_rss"):
            if not _is_whole(value := getattr(self, what)):
                got = f"{value!r}, of type {type(value).__name__}"
                raise EdgerunError(f"Options({what}=) is no whole number", got=got, wanted="an int")
        machine.bounded(self.threads, "threads")
        machine.bounded(self.streams, "streams")
        for name in ("extra", "sizes", "usual"):
            if not isinstance(getattr(self, name), Mapping):
                got = type(getattr(self, name)).__name__
                raise EdgerunError(f"Options({name}=) is no dict", got=got, wanted="values by name")
        for key, value in self.extra.items():
            if not isinstance(value, str):
                what, got = (
                    f"the option {key!r} has a value that is no text",
                    f"{value!r}, of type {type(value).__name__}",
                )
                raise EdgerunError(
                    what, got=got, wanted="a str", do=f"give {str(value)!r}, as the target's `takes` spells"
                )
        if self.streams < 1:
            raise EdgerunError("the number of streams is no number of runs", got=self.streams, wanted="1 or more")
        if self.threads < 0:
            raise EdgerunError("the number of threads is negative", got=self.threads, wanted="0 (the quota) or more")
        if self.max_rss < 0:
            raise EdgerunError("the bound on memory is no size", got=self.max_rss, wanted="bytes, or 0 for no bound")
        for name, size in self.sizes.items():
            whole = _are_whole(size) and size and len(size) % 3 == 0 and min(size) > 0
            if not whole or np.diff(np.reshape(size, (-1, 3))).min() < 0:
                raise EdgerunError(f"{name!r} has no range of sizes", got=size, wanted="(least, usual, most) from 1 on")
        for name, shape in self.usual.items():
            if not _are_whole(shape):
                raise EdgerunError(f"the usual shape of {name!r} is none", got=shape, wanted="a tuple of whole numbers")

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Raise EdgerunError where they say something of an input, or of an open dimension, that there is none of, or
        of an input's shape what it cannot be."""
        names = [spec.name for spec in inputs]
        dims = {dim for spec in inputs for dim in spec.shape if isinstance(dim, str)}
        for kind, given, known in (("input", self.usual, names), ("open dimension", self.sizes, dims)):
            if surplus := set(given) - set(known):
                raise unknown(kind, min(surplus), known)
        for spec in inputs:
            if not _fits(spec, shape := self.usual.get(spec.name, spec.shape)):
                got = f"{spec.name}: {list(shape)}"
                raise EdgerunError("the usual shapes do not fit the model", got=got, wanted=str(spec))


def _fits(spec: TensorSpec, shape: Sequence[int | str]) -> bool:
    pairs = zip(spec.shape, shape, strict=False)
    return len(spec.shape) == len(shape) and all(
        have == want if isinstance(want, int) else not isinstance(have, int) or have >= 0 for want, have in pairs
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _are_whole(values: object) -> bool:
    return isinstance(values, (tuple, list)) and all(map(_is_whole, values))


@dataclass(frozen=True)
class Engine:
    """What a target compiled: bytes or a path it can load, and where it is valid.

    `payload` is what the target's `load` reads; `device` is the fingerprint of the machine it was compiled for;
    `digest` is the SHA-256 of the Model it came from ("" when it was opened from a file without one);
    `check` is the comparison with the reference that it passed (None: opened from a file, or not compared);
    `source` is the `.onnx` that it was made from, where one that left the weights out may need them again.
    `weights` are initializers that `payload` names as external, given as arrays instead of in a file; `folder` is where
    the files lie that it names besides.
    `elements` are the types of the tensors in an ONNX payload, as numbers of onnx.TensorProto.DataType (None: nobody
    has looked). `usual` are the shapes of feeds, by input, that kernels are ready for.
    """

    target: str
    payload: bytes | Path
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    check: SelfCheck | None = None
    source: bytes | None = None
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    folder: Path | None = None
    elements: frozenset[int] | None = None
    usual: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
