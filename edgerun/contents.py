"""What a file that a target wrote tells of itself, without a run: `edgerun inspect` on an IR, an .ort, an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgerun.errors import EdgerunError

if TYPE_CHECKING:
    from edgerun.model import Step
    from edgerun.runtime.spec import TensorSpec


@dataclass(frozen=True)
class Weights:
    """All constants of one dtype: how many, elements, bytes."""

    tensors: int
    elements: int
    bytes: int

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.tensors + other.tensors, self.elements + other.elements, self.bytes + other.bytes)


@dataclass(frozen=True)
class Contents:
    """A file of `target`'s own kind: `format` in words; `file_bytes` counts the weights' file beside it, too.

    `digest` is that of the model that it was compiled from; it, the history and the contracts are empty for a file that
    edgerun did not write. `ops` and `weights` are the runtime's own, where its format shows them; `device` is what it
    was compiled on, or for. `options` are what its device compiles a recipe with; None of what is compiled.
    """

    path: str
    target: str
    format: str
    file_bytes: int
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Mapping[str, Any] | None
    postprocessing: Mapping[str, Any] | None
    history: tuple[Step, ...]
    ops: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, Weights] = field(default_factory=dict)
    device: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] | None = None


@runtime_checkable
class Telling(Protocol):
    """A Target whose own files tell what they hold. `contents` raises EdgerunError for a file that is no such one."""

    def contents(self, path: Path) -> Contents: ...


def steps(told: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """A history from its JSON values. Raises EdgerunError for what is none."""
    from edgerun.model import Step

    try:
        return tuple(Step(**step) for step in told)
    except TypeError as error:
        raise EdgerunError("the file's history is damaged", got=str(error), do="compile it again") from error
