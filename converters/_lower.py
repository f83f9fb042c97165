"""Older forms of the same graph: the operators that define an operator, an opset and an IR version that is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from edgerun.converters import _bodies
from edgerun.converters._normalize import ir_version, opset_of, to_opset
from edgerun.converters._ort import first_line
from edgerun.errors import Unsupported

if TYPE_CHECKING:
    import onnx

    from edgerun.passes import Limits

# TensorProto types by the IR version that brought them (8-bit floats, 4-bit integers, 4-bit floats, scales, 2 bits).
BROUGHT_BY = {9: {17, 18, 19, 20}, 10: {21, 22}, 11: {23}, 12: {24}, 13: {25, 26}}


def lowered(proto: onnx.ModelProto, limits: Limits) -> tuple[onnx.ModelProto, list[str]]:
    """The model within `limits`, and what was done to it, as lines.

    Operators that are too new are written as those that define them, where the standard does; then an opset that no
    node needs is only renamed, and else converted. Raises Unsupported naming what cannot be brought there.
    """
    import onnx

    told: list[str] = []
    if opset_of(proto) > limits.opset:
        if new := {node.op_type for node in too_new(proto, limits.opset) if _defined(node, proto)}:
            if (made := expanded(proto, new)) is not None:
                proto = made[0]
                told.append(made[1])
        told.append(f"opset {opset_of(proto)} -> {limits.opset}")
        proto = _converted(proto, limits) if list(too_new(proto, limits.opset)) else _renamed(proto, limits.opset)
    if proto.ir_version > limits.ir_version:
        told.append(f"IR version {proto.ir_version} -> {limits.ir_version}")
        _check_types(proto, limits.ir_version)
        proto = onnx.ModelProto.FromString(proto.SerializeToString())
        proto.ir_version = limits.ir_version
    if opset_of(proto) and (needed := ir_version(opset_of(proto))) > proto.ir_version:
        if needed > limits.ir_version:
            raise Unsupported(f"IR version {limits.ir_version} carries no opset {opset_of(proto)}")
        told.append(f"IR version {proto.ir_version} -> {needed}")  # the file's own never carried its opset
        proto = onnx.ModelProto.FromString(proto.SerializeToString())
        proto.ir_version = needed
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # the checker's own class, and bare RuntimeError
        raise Unsupported("the model is none of that opset", got=first_line(error)) from error
    return proto, told


def expanded(proto: onnx.ModelProto, ops: Collection[str]) -> tuple[onnx.ModelProto, str] | None:
    """The model with every node of `ops` (all, when there are none) written with other operators, and a line on it.

    Constants in what comes out are computed, and branches chosen where a condition is constant. None where nothing is
    known for any. Raises Unsupported where a definition asks for types that are not known.
    """
    made, counts = _bodies.inlined(proto, ops)
    named = ", ".join(f"{op} ({count})" for op, count in sorted(counts.items()))
    if counts:
        return folded(made), f"written with other operators: {named}"
    branches = _branches(proto) if "If" in ops else 0
    if not branches or _branches(made := folded(proto)) == branches:
        return None
    return made, f"branches chosen where the condition is constant ({branches})"


def _branches(proto: onnx.ModelProto) -> int:
    return sum(node.op_type == "If" for node in _bodies.nodes(proto.graph))


def folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with what depends on constants and known sizes alone computed, branches among it chosen."""
    import onnx_ir as ir
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import fold_constants

    model = ir.from_proto(proto)
    fold_constants(model, onnx_shape_inference=True, input_size_limit=1 << 16, output_size_limit=1 << 16)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)


def _defined(node: onnx.NodeProto, proto: onnx.ModelProto) -> bool:
    return bool(_bodies.defined({node.op_type}, opset_of(proto)))


def too_new(proto: onnx.ModelProto, opset: int) -> Iterator[onnx.NodeProto]:
    """Nodes of the default domain whose operator, as this model uses it, is newer than `opset`."""
    import onnx

    for node in _bodies.nodes(proto.graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, opset_of(proto), "")
        except onnx.defs.SchemaError:
            continue  # no operator of the standard, or not of this opset: that is for the target to refuse
        if schema.since_version > opset:
            yield node


def _renamed(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same nodes under an older opset, in which each means the same."""
    import onnx

    made: onnx.ModelProto = onnx.ModelProto.FromString(proto.SerializeToString())
    for imported in (*made.opset_import, *(i for f in made.functions for i in f.opset_import)):
        if imported.domain in ("", "ai.onnx"):
            imported.version = opset
    return made


def _converted(proto: onnx.ModelProto, limits: Limits) -> onnx.ModelProto:
    names = ", ".join(sorted({node.op_type for node in too_new(proto, limits.opset)}))
    try:
        return to_opset(proto, limits.opset)
    except Unsupported as error:
        raise Unsupported(f"no opset as old as {limits.opset} has {names}", got=error.got) from error


def _check_types(proto: onnx.ModelProto, newest: int) -> None:
    used = {tensor.data_type for tensor in proto.graph.initializer}
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    used |= {value.type.tensor_type.elem_type for value in values}
    for version, types in BROUGHT_BY.items():
        if version > newest and used & types:
            raise Unsupported(f"the model has types that IR version {version} brought", wanted=f"at most {newest}")
