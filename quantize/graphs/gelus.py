"""GELU's tanh form as one operator, where a file has it in nine pieces: ½x(1 + tanh(√(2/π)(x + 0.044715x³))).

(Hendrycks and Gimpel 2016, section 2.) However it is bracketed: what tanh reads is multiplied out as a polynomial in x.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.compressed import MICROSOFT, replace
from edgerun.quantize.graphs.edit import fresh_name, number, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

ROOT, CUBE = math.sqrt(2 / math.pi), 0.044715
WANTED = np.polynomial.Polynomial([0.0, ROOT, 0.0, ROOT * CUBE])
SAME = 1e-5  # how near, as a share, the numbers of a file are to these
DEEPEST = 12  # pieces between x and what tanh reads


def join(model: ir.Model) -> int:
    """Put ONNX Runtime's FastGelu in the place of the pieces, float32, in place; return how many. Values agree to float
    rounding."""
    import onnx_ir.passes.common as common

    joined = sum([_join(model.graph, node) for node in list(model.graph) if node.op_type == "Tanh"])
    if joined:
        model.opset_imports.setdefault(MICROSOFT, 1)
        common.RemoveUnusedNodesPass()(model)
    return joined


def _join(graph: ir.Graph, tanh: ir.Node) -> bool:
    import onnx_ir as ir

    inner = tanh.inputs[0]
    if tanh.domain != "" or inner is None or inner.dtype != ir.DataType.FLOAT:
        return False
    for end, factor, value in _behind(tanh):
        for x, own in _parts(value):
            found = _polynomial(inner, x, DEEPEST)
            if found is None or not math.isclose(factor * own, 0.5, rel_tol=SAME):
                continue
            if _alike(found, WANTED):
                made = ir.node("FastGelu", [x], domain=MICROSOFT, name=fresh_name(graph, f"{end.name}/FastGelu"))
                replace(graph, end, [made])
                return True
    return False


def _behind(tanh: ir.Node) -> list[tuple[ir.Node, float, ir.Value]]:
    """Where c·v·(1 + tanh) ends, with c and v, for each end that it may have."""
    add, found = sole_consumer(tanh.outputs[0]), []
    if add is None or add.op_type != "Add" or not any(number(value) == 1 for value in add.inputs):
        return []
    factor, other, current = 1.0, None, add
    while (product := sole_consumer(current.outputs[0])) is not None and product.op_type == "Mul":
        beside = product.inputs[1] if product.inputs[0] is current.outputs[0] else product.inputs[0]
        if (by := number(beside)) is not None:
            factor *= by
        elif other is None and beside is not None and beside is not current.outputs[0]:
            other = beside
        else:
            break
        current = product
        if other is not None:
            found.append((current, factor, other))
    return found


def _parts(value: ir.Value) -> list[tuple[ir.Value, float]]:
    """(x, c) of c·x, for what x may be: the value itself, and what it is a multiple of."""
    found, node = [(value, 1.0)], value.producer()
    if node is not None and node.op_type in ("Mul", "Div"):
        for x, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            by = number(other)
            if x is not None and by and (node.op_type == "Mul" or x is node.inputs[0]):
                found.append((x, by if node.op_type == "Mul" else 1 / by))
    return found


def _polynomial(value: ir.Value | None, x: ir.Value, depth: int) -> np.polynomial.Polynomial | None:
    """`value` as a polynomial in `x`; None where it is none, or of a higher degree than three."""
    if value is x:
        return np.polynomial.Polynomial([0.0, 1.0])
    if value is None or depth == 0:
        return None
    if (constant := number(value)) is not None:
        return np.polynomial.Polynomial([constant])
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in ("Add", "Sub", "Mul", "Div", "Pow"):
        return None
    first, second = (_polynomial(part, x, depth - 1) for part in node.inputs)
    if first is None or second is None:
        return None
    if node.op_type in ("Add", "Sub"):
        return first + second if node.op_type == "Add" else first - second
    if node.op_type == "Mul":
        return first * second if first.degree() + second.degree() <= 3 else None
    by = float(second.coef[0])
    if second.degree() > 0 or (node.op_type == "Div" and by == 0):
        return None
    if node.op_type == "Div":
        return first / by
    return first ** int(by) if by in (1, 2, 3) and first.degree() * by <= 3 else None


def _alike(found: np.polynomial.Polynomial, wanted: np.polynomial.Polynomial) -> bool:
    """Whether all coefficients are the same."""
    found = found.trim()
    return found.degree() == wanted.degree() and np.allclose(found.coef, wanted.coef, rtol=SAME, atol=1e-9)
