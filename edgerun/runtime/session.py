"""A running engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Mapping, Optional, Type

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime.spec import TensorSpec


class Session(ABC):
    """Runs feeds; a context manager. The arrays that `run` returns belong to the caller.

    Subclasses implement `_run` and `_close`; this class checks what goes in, so that no backend has to.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._specs = tuple((spec.name, np.dtype(spec.dtype), spec.shape, spec) for spec in inputs)

    @abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def _close(self) -> None:
        """Release what the backend holds; the default holds nothing."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises EdgerunError for a missing or surplus input, a wrong dtype or a wrong shape."""
        checked: dict[str, np.ndarray] = {}
        for name, dtype, shape, spec in self._specs:
            value = feeds.get(name)
            if value is None:
                raise EdgerunError(
                    f"input {name!r} is missing", got=sorted(feeds), wanted=", ".join(str(s) for s in self.inputs)
                )
            array = value if isinstance(value, np.ndarray) else np.asarray(value)
            if array.dtype != dtype or array.ndim != len(shape):
                spec.check(array)
            for have, want in zip(array.shape, shape):
                if want != have and isinstance(want, int):
                    spec.check(array)
            checked[name] = array
        if len(feeds) != len(checked):
            surplus = sorted(set(feeds) - set(checked))
            raise EdgerunError(f"unknown input {surplus[0]!r}", got=surplus, wanted=", ".join(str(s) for s in self.inputs))
        return self._run(checked)

    def close(self) -> None:
        """End the session; running it afterwards is an error of the backend's."""
        self._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
