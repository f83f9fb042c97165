"""A running engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime.spec import TensorSpec

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; a device may have 3.10


class Session(ABC):
    """Runs feeds; a context manager. The arrays that `run` returns belong to the caller.

    `run` may be called from several threads at once. Subclasses implement `_run` and `_close`;
    this class checks what goes in, so that no backend has to.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._closed = False
        self._specs = tuple((spec.name, np.dtype(spec.dtype), spec.shape, spec) for spec in inputs)

    @abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _close(self) -> None:
        """Release what the backend holds."""

    def run(self, feeds: Mapping[str, np.ndarray | np.generic]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises EdgerunError for a missing or surplus input, a wrong dtype or a wrong shape."""
        if self._closed:
            raise EdgerunError("the session is closed", do="load the engine again")
        checked: dict[str, np.ndarray] = {}
        for name, dtype, shape, spec in self._specs:
            value = feeds.get(name)
            if value is None:
                raise EdgerunError(f"input {name!r} is missing", got=sorted(feeds), wanted=self._door())
            array = value if isinstance(value, np.ndarray) else np.asarray(value)
            if array.dtype != dtype or array.ndim != len(shape):
                array = array.astype(object) if dtype.kind == "O" and array.dtype.kind == "U" else array
                spec.check(array)
            for have, want in zip(array.shape, shape, strict=True):
                if want != have and isinstance(want, int):
                    spec.check(array)
            checked[name] = array
        if len(feeds) != len(checked):
            surplus = sorted(set(feeds) - set(checked))
            raise EdgerunError(f"unknown input {surplus[0]!r}", got=surplus, wanted=self._door())
        return self._run(checked)

    def close(self) -> None:
        """End the session and free its memory; running it afterwards raises EdgerunError."""
        if not self._closed:
            self._closed = True
            self._close()

    def _door(self) -> str:
        return ", ".join(str(spec) for spec in self.inputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
