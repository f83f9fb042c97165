"""What a session asks of the feeds that it is given."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime import arrays, dtypes
from edgerun.runtime.spec import TensorSpec


class Door:
    """The inputs of a model; `taken` is called in every run, and costs about a microsecond."""

    def __init__(
        self, specs: Sequence[TensorSpec], view: arrays.View = arrays.viewed, defaults: Sequence[TensorSpec] = ()
    ) -> None:
        self._all, self._inputs = tuple(specs), [_Input(spec) for spec in (*specs, *defaults)]
        self._defaults = {spec.name for spec in defaults}  # of the inputs, those that may be left out
        self.view = view
        self._tied = _tied(specs)
        self._refuses = True
        self._agreed: list[tuple[int, ...]] = []  # the last shapes whose dimensions of one name had one size

    def taken(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The feeds as arrays. Raises EdgerunError for a missing or surplus one, a wrong dtype, and a wrong shape."""
        named(feeds, "feeds")
        checked: dict[str, np.ndarray] = {}
        for door in self._inputs:
            name, value = door.name, feeds.get(door.name)
            if not door.plain:
                if value is None and (name not in feeds or "optional" not in door.spec.kind):
                    raise EdgerunError(f"input {name!r} is missing", got=sorted(feeds), wanted=str(self))
                checked[name] = arrays.structured(door.spec, value, self.view)
                continue
            if value is None:
                if name in self._defaults and name not in feeds:
                    continue
                raise EdgerunError(f"input {name!r} is missing", got=sorted(feeds), wanted=str(self))
            array = value if type(value) is np.ndarray else arrays.taken(door.spec, value, self.view)
            shape, dtype = array.shape, array.dtype
            if (dtype is not door.dtype and dtype != door.dtype) or len(shape) != door.rank:
                array = arrays.taken(door.spec, array, self.view)
                door.spec.check(array)
            if door.text and self._refuses:
                arrays.check_texts(name, array)
            for axis, size in door.fixed:
                if shape[axis] != size:
                    door.spec.check(array)
            checked[name] = array
        if len(feeds) != len(checked):
            surplus = sorted(set(feeds) - set(checked), key=str)
            raise EdgerunError(f"unknown input {surplus[0]!r}", got=surplus, wanted=str(self))
        if self._tied:
            shapes = [checked[name].shape for name in self._tied]
            if shapes != self._agreed:
                self._agree(shapes)
        return checked

    def loosen(self) -> None:
        """Let a dimension's name stand for two sizes from now on, which is told once, and objects be any."""
        self._refuses = False

    def _agree(self, shapes: list[tuple[int, ...]]) -> None:
        """Raise EdgerunError where a dimension's name stands for two sizes, or tell it."""
        found: dict[str, tuple[str, int]] = {}
        for (name, dims), shape in zip(self._tied.items(), shapes, strict=True):
            for axis, dim in dims:
                first, size = found.setdefault(dim, (name, shape[axis]))
                if size != shape[axis]:
                    what, got = f"the inputs have different sizes of {dim!r}", f"{first}: {size}, {name}: {shape[axis]}"
                    if self._refuses:
                        raise EdgerunError(what, got=got, wanted=str(self))
                    self._tied = {}
                    warnings.warn(f"{what} ({got}), which ONNX says are one", stacklevel=2)
                    return
        self._agreed = shapes

    def __str__(self) -> str:
        return ", ".join(str(spec) for spec in self._all)


class _Input:
    """What is asked of one input, looked up once."""

    __slots__ = ("dtype", "fixed", "name", "plain", "rank", "spec", "text")

    def __init__(self, spec: TensorSpec) -> None:
        self.spec, self.name, self.plain = spec, spec.name, spec.kind == "tensor"
        self.text = spec.dtype == "object"
        self.dtype, self.rank = dtypes.dtype(spec.dtype), len(spec.shape)
        self.fixed = [(axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, int)]


def _tied(specs: Sequence[TensorSpec]) -> dict[str, list[tuple[int, str]]]:
    """The (axis, name) of every dimension whose name stands more than once, by input."""
    plain = [spec for spec in specs if spec.kind == "tensor"]
    names = [dim for spec in plain for dim in spec.shape if isinstance(dim, str)]
    found = {spec.name: [(axis, dim) for axis, dim in enumerate(spec.shape)
                         if isinstance(dim, str) and names.count(dim) > 1] for spec in plain}  # fmt: skip
    return {name: dims for name, dims in found.items() if dims}


def named(arrays: object, what: str) -> None:
    """Raise EdgerunError where these are no arrays by name."""
    if type(arrays) is not dict and not isinstance(arrays, Mapping):
        raise EdgerunError(f"{what} are arrays by name", got=type(arrays).__name__, wanted="a dict, as {'x': array}")
