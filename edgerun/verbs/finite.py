"""Whether a model's layers have weights to compute with: a NaN or an infinity in them spoils every output behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model

# What elsewhere is not finite may be meant so: a mask of -inf, a NaN that stands for what is missing.
LAYERS = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN",
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization",
})  # fmt: skip
FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


def broken(model: Model) -> list[str]:
    """The layers with weights or biases that are not finite, as `'name' (op): 2 of 4,096 numbers`. Reads them all."""
    found = []
    for node in model.ir.graph.all_nodes():
        if node.op_type in LAYERS and node.domain == "":
            bad, size = map(sum, zip((0, 0), *map(_counts, node.inputs), strict=True))
            if bad:
                name = node.name or node.outputs[0].name
                found.append(f"{name!r} ({node.op_type}): {bad:,} of {size:,} numbers")
    return found


def told(found: list[str]) -> str:
    """The first few of them."""
    return "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def _counts(value: ir.Value | None) -> tuple[int, int]:
    """How many of a constant's numbers are not finite, where any is, and how many there are."""
    tensor = value.const_value if value is not None else None
    if tensor is None or tensor.dtype.name not in FLOATS:
        return 0, 0
    array = tensor.numpy()
    with np.errstate(all="ignore"):  # one pass without a copy: a sum in float64 is finite where float32 numbers are
        if np.isfinite(array.sum(dtype=np.float64)):
            return 0, array.size
    return int(array.size - np.isfinite(array).sum()), array.size
