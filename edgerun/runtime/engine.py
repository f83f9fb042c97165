"""A model compiled for one target."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Union

from edgerun.runtime.spec import TensorSpec


@dataclass(frozen=True)
class Options:
    """How a target shall run: `threads` (0: the cgroup's quota), and `extra` target-specific keys."""

    threads: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """What a target compiled: bytes or a path it can load, and where it is valid.

    `payload` is what the target's `load` reads; `device` is the fingerprint of the machine it was compiled for;
    `digest` is the SHA-256 of the Model it came from ("" when it was opened from a file without one).
    """

    target: str
    payload: Union[bytes, Path]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
