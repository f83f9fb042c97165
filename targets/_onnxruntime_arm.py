"""ONNX Runtime's keys for kernels of ARM alone: where they would mean nothing, they are refused."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from edgerun.errors import Unsupported
from edgerun.runtime import machine
from edgerun.targets import _onnxruntime_settings as setting


@dataclass(frozen=True)
class Kernels:
    """What a key turns on or off: CPUs that have one of `flags` (the kernel's spelling), builds that hold `mark`."""

    what: str
    flags: frozenset[str]
    mark: bytes


KEYS = {
    "mlas.enable_gemm_fastmath_arm64_bfloat16": Kernels(
        "bfloat16 kernels for float32 products", frozenset({"bf16"}), b"mlas.enable_gemm_fastmath_arm64_bfloat16"
    ),
    "mlas.disable_kleidiai": Kernels(
        "KleidiAI's kernels", frozenset({"asimddp", "i8mm", "sme", "sme2"}), b"ArmKleidiAI"
    ),
}  # fmt: skip


def require(runtime: Any, key: str, value: str) -> None:
    """Raise Unsupported where this CPU, or the installed build, has no kernels that the key is about."""
    reason = missing(key, machine.arch(), machine.flags(), "this CPU")
    if reason is None and not setting.holds(runtime.__file__, KEYS[key].mark):
        reason = f"ONNX Runtime {runtime.__version__} was built without them"
    if reason:
        raise Unsupported(f"{key}={value} is about {KEYS[key].what}", got=reason, do="leave it out")


def missing(key: str, arch: str, flags: Set[str], whose: str) -> str | None:
    """Why a CPU with these instruction sets has no such kernels; None if it has."""
    if arch != "aarch64":
        return f"{whose} is {arch}"
    if not (wanted := KEYS[key].flags) & flags:
        return f"{whose} has none of {', '.join(sorted(wanted))}"
    return None
