"""What the CPU plugin's integer kernels want, by the instruction sets that oneDNN may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from edgerun.runtime import machine
from edgerun.target import Quantization
from edgerun.targets import _cpu

if TYPE_CHECKING:
    from edgerun.devices import Device

VECTOR = 16  # channels that a kernel's activation is computed for at once
# ONEDNN_MAX_CPU_ISA: the dot-product instructions that are left under each cap that takes some away.
DOT_PRODUCT_UNDER: dict[str, frozenset[str]] = {
    **dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX512_CORE"), frozenset()),
    **dict.fromkeys(("AVX2_VNNI", "AVX2_VNNI_2"), frozenset({"avx_vnni"})),
    **dict.fromkeys(("AVX512_CORE_VNNI", "AVX512_CORE_BF16"), frozenset({"avx512_vnni"})),
}
# All that oneDNN 3 reads there; it takes no notice of another word.
CLASSES = frozenset(DOT_PRODUCT_UNDER) | {
    "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16", "AVX10_1_512", "AVX10_1_512_AMX",
    "AVX10_1_512_AMX_FP16", "AVX10_2_512", "AVX10_2_512_AMX_2",
}  # fmt: skip


def quantization(device: Device | None = None) -> Quantization:
    """What the CPU plugin's low-precision transformations turn into integer kernels."""
    flags = allowed(machine.isa()) if device is None else _cpu.flags(device)
    tiles = "amx_int8" in flags  # multiplies signed by signed values, others unsigned by signed ones
    return replace(
        _cpu.halves(flags),
        reduced_range=_cpu.saturates(flags, device),
        float_output=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        compute=_cpu.RULES.compute | {"ConvTranspose"},
        float_stem=4,
        depthwise_stem=True,
        forked_bias=True,
        pair_matmul=True,
        join=_cpu.RULES.join - {"LeakyRelu"},
        dynamic=frozenset({"MatMul", "Gemm"}),
        float_loops=True,
        channel_scales=True,
        joins_rounding=True,
        sigmoid_apart=math.inf if tiles else VECTOR,
        mirrored=0.9 if tiles else 1.0,
    )


def allowed(flags: Iterable[str]) -> set[str]:
    """The instruction sets that oneDNN's kernels use: the machine's, less what the environment takes away."""
    tiles = set() if cap() in ("", "ALL", "DEFAULT") or "AMX" in cap() else {_cpu.TILES}
    return set(flags) - tiles - (_cpu.DOT_PRODUCT - DOT_PRODUCT_UNDER.get(cap(), _cpu.DOT_PRODUCT))


def cap() -> str:
    """The class of CPU that the environment makes oneDNN play; "" for none, and for a word that it does not know."""
    word = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    return word if word in CLASSES else ""
