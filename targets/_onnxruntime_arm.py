"""ONNX Runtime's keys for kernels of ARM alone: where they would mean nothing, they are refused."""

from __future__ import annotations

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
    of = KEYS[key]
    if reason := _missing(runtime, of):
        raise Unsupported(f"{key}={value} is about {of.what}", got=reason, do="leave it out")


def _missing(runtime: Any, of: Kernels) -> str | None:
    if machine.arch() != "aarch64":
        return f"this CPU is {machine.arch()}"
    if not of.flags & machine.flags():
        return f"this CPU has none of {', '.join(sorted(of.flags))}"
    if not setting.holds(runtime.__file__, of.mark):
        return f"ONNX Runtime {runtime.__version__} was built without them"
    return None
