"""What a tensor at a model's door looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime import dtypes

Dim = int | str
# Compiled when it is asked for: who opens a model writes no specs.
_SPEC = r"^(?:(?P<name>[^:\[\]]+):)?(?:(?P<dtype>[a-z]+[0-9]*))?\[(?P<shape>[^\[\]]*)\]$"
WORDS = ("", "a", "b", "ab", "Word", "two words", "1", "ü")  # of which strings are drawn
DTYPES = (
    "float32",
    "float16",
    "float64",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
)


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype name and shape of one input or output; a symbolic dimension is a string.

    `dtype` is numpy's name or one of `dtypes.NARROW`; "object" holds strings. `kind` is "tensor", "sequence" (a list of
    tensors, of any shape), "optional" or "optional sequence".
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    kind: str = "tensor"

    def __str__(self) -> str:
        if self.kind != "tensor":
            return f"{self.name}:{self.kind.replace(' ', '_')}({self.dtype})"
        return f"{self.name}:{self.dtype}[{','.join(map(str, self.shape))}]"

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """Read `name:dtype[batch,3,224,224]`; the name may be left out (""), the dtype too (float32)."""
        match = re.match(_SPEC, text.strip())
        dtype = (match["dtype"] or "float32") if match else ""
        if not match or dtype not in DTYPES:
            raise EdgerunError(
                "an input is not understood",
                got=text,
                wanted="name:dtype[dim,dim,…], for example image:float32[batch,3,224,224]",
            )
        dims: list[Dim] = []
        for word in filter(None, (part.strip() for part in match["shape"].split(","))):
            dims.append(int(word) if word.isdigit() else word)
        return cls(match["name"] or "", dtype, tuple(dims))

    def with_dims(self, values: Mapping[str, int], default: int = 1) -> tuple[int, ...]:
        """A concrete shape: symbolic dimensions from `values`, else `default`."""
        return tuple(d if isinstance(d, int) else values.get(d, default) for d in self.shape)

    def check(self, array: np.ndarray, door: str = "input") -> None:
        """Raise EdgerunError when `array` cannot be this input, or be the place for this output (`door`)."""
        if array.dtype != dtypes.dtype(self.dtype):
            raise EdgerunError(
                f"{door} {self.name!r} has the wrong dtype",
                got=array.dtype.name if array.dtype.isnative else f"{array.dtype.name} in foreign byte order",
                wanted=self.dtype,
                do=f"array.astype('{self.dtype}')",
            )
        if array.ndim != len(self.shape) or any(
            isinstance(want, int) and have != want for have, want in zip(array.shape, self.shape, strict=True)
        ):
            raise EdgerunError(
                f"{door} {self.name!r} has the wrong shape", got=list(array.shape), wanted=str(list(self.shape))
            )


def batch_dims(specs: Sequence[TensorSpec]) -> set[str]:
    """The symbolic dimensions that count as a batch: those that lead an input of more than one axis.

    A name that leads one input and stands inside another is one of them, and a lone axis where every input has one.
    """
    least = min(2, max((len(spec.shape) for spec in specs), default=0))
    return {dim for spec in specs if len(spec.shape) >= least > 0 for dim in spec.shape[:1] if isinstance(dim, str)}


def counted(value: object, least: int = 0) -> bool:
    """Whether it is a whole number from `least` on."""
    return isinstance(value, (int, np.integer)) and int(value) >= least


def named(dim: object) -> bool:
    """Whether an open dimension has a name of its own: "?" is none, which several have that differ, nor is "-1"."""
    return isinstance(dim, str) and any(map(str.isalpha, dim))
