"""What the MLAS kernels of ONNX Runtime's CPU provider want, by the instruction sets that they use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgerun.targets import _cpu

if TYPE_CHECKING:
    from edgerun.devices import Device
    from edgerun.target import Quantization


def quantization(device: Device | None) -> Quantization:
    """The integer ops and their surroundings, as Q/DQ; of this machine's CPU where no device is told."""
    flags = _cpu.flags(device)
    return replace(
        _cpu.RULES,
        # The kernels for SSE widen before they multiply.
        reduced_range=_cpu.saturates(flags, device) and "avx2" in flags,
        through=_cpu.RULES.through | {"Split", "Resize", "Slice"},
        join=_cpu.RULES.join | {"Sigmoid"},
        float_output=frozenset({"MatMul", "Gemm"}),
        float_stem=4,
        thin=48,
        requantizes=True,
        dynamic=frozenset({"MatMul", "Gemm", "LSTM"}),
        flat_rows=True,
        early=True,
        blocked="avx2" in flags,
        denormals=_cpu.x86(device),
        fast_gelu=True,
    )
