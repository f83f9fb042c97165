"""What a diagnosis does not see, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.edit import constant

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.quantize.diagnosis.trials import Measured

FAITHFUL_DB = 50.0  # the float counterpart reaches at least this where the models belong together
RUNNING = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM")
PAIR = ("QuantizeLinear", "DequantizeLinear")
HALVES = ("FLOAT16", "BFLOAT16")
UNSEEN = {
    "MatMulInteger": "integer products in another form than DynamicQuantizeLinear's, or with computed weights",
    "ConvInteger": "convolutions whose input is quantized while they run",
    "MatMulNBits": "products with blocks of weights without zero points, or in 16 bits",
    "QLinearConv": "layers in QOperator form", "QLinearMatMul": "layers in QOperator form",
    "QGemm": "layers in QOperator form",
}  # fmt: skip


def told(model: ir.Model, counterpart: Counterpart, base: Measured, batch: int) -> tuple[str, ...]:
    """What a reader of the rows must know: `base` is the model with nothing rounded, `batch` the samples of a run."""
    notes = []
    if batch > 1 and any(node.op_type in RUNNING for node in model.graph):
        notes.append(f"what is rounded while it runs shares its scale over a batch, of {batch} samples here")
    for what, names in _unseen(model.graph).items():
        notes.append(f"{what} ({_few(names)}): not looked at")
    if counterpart.foreign:
        found = f"{len(counterpart.foreign)} layers ({_few(counterpart.foreign)})"
        notes.append(f"no float weight was found for {found}: theirs count as exact")
    if base.sqnr_db < FAITHFUL_DB:
        notes.append(
            f"with nothing rounded the quantized model still differs from the float one (SQNR {base.sqnr_db:.1f} dB): "
            "what differs there is nobody's damage below"
        )
    return tuple(notes)


def _unseen(graph: ir.Graph) -> dict[str, list[str]]:
    """Nodes that round and that no quantizer stands for, by what they do."""
    found: dict[str, list[str]] = {}
    for node in graph.all_nodes():
        if what := UNSEEN.get(node.op_type):
            found.setdefault(what, []).append(str(node.name))
        elif node.op_type == "Gather" and (table := constant(node.inputs[0])) is not None and table.dtype == np.int8:
            found.setdefault("tables in 8 bits", []).append(str(node.name))
    return found


def nothing(graph: ir.Graph, float_: ir.Graph) -> EdgerunError:
    """The error for a model in which nothing is found: what it has instead, and what can be done."""
    unseen = _unseen(graph)
    what = "in the second model there is no QuantizeLinear/DequantizeLinear pair, and no stored weight, to look at"
    if any(node.op_type in PAIR for node in graph):
        unseen["pairs in other formats than 8-bit integers, or with computed or blocked scales"] = []
    halves = {v.dtype.name for v in graph.initializers.values() if v.dtype is not None} & {*HALVES}
    if halves and not unseen:
        unseen[f"weights in {' and '.join(sorted(halves)).lower()}, and none in integers"] = []
    if not unseen:
        swapped = any(node.op_type in (*PAIR, *RUNNING, *UNSEEN) for node in float_)
        do = (
            "give the float model first, then the quantized one" if swapped else "give what edgerun compress made of it"
        )
        return EdgerunError(what, got=None if swapped else "a float model", wanted="a quantized model", do=do)
    return EdgerunError(
        what, got="; ".join(f"{name} ({_few(nodes)})" if nodes else name for name, nodes in unseen.items()),
        wanted="INT8 pairs, dynamic or weight-only products, or recurrent layers on integers",
        do="edgerun compare tells how far it is off; compress again with --keep-float NODE to see what a layer costs",
    )  # fmt: skip


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
