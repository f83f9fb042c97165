"""What the targets on CPUs have in common: their rules, and what instruction sets mean for integer sums."""

from __future__ import annotations

import platform
from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING

from edgerun.runtime import machine
from edgerun.target import Quantization

if TYPE_CHECKING:
    from edgerun.devices import Device

# Each adds u8·s8 products in 32 bits. x86 without one adds two of them in 16; ARM widens without one, too.
DOT_PRODUCT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
TILES = "amx_bf16"  # sixteen rows of products in bfloat16 at once, added up in float32

RULES = Quantization(
    schemes=("w8a8", "w8a8_dynamic", "w8a16", "w4a16_b32", "w4a8", "fp16"),
    activation="uint8",
    compute=frozenset({"Conv", "Gemm", "MatMul"}),
    through=frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}),
    join=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu"}),
    absorbed=frozenset({"Relu", "Clip", "Max", "Min"}),
    float_gates=True,
    tables=True,
    widens=True,
)


def flags(device: Device | None) -> set[str]:
    """Instruction sets of `device`, or of this machine."""
    return set(device.isa if device is not None else machine.isa())


def halves(flags: Set[str]) -> Quantization:
    """`RULES` of kernels that add in 16 bits on SSE too, with bfloat16 arithmetic where these instruction sets make it
    fast."""
    rules = replace(RULES, paired=("SSE4.1", *RULES.paired))
    return rules if TILES not in flags else replace(rules, schemes=(*rules.schemes, "w16a16"), half="bfloat16")


def saturates(flags: Set[str], device: Device | None) -> bool:
    """Whether a kernel that multiplies u8 by s8 with these instruction sets adds two products in 16 bits."""
    return x86(device) and not DOT_PRODUCT & flags


def x86(device: Device | None) -> bool:
    """Whether `device`, or this machine, has such a CPU."""
    arch = platform.machine() if device is None else device.arch
    return arch.lower() in ("x86_64", "amd64", "i686", "x86")
