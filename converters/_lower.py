"""Older forms of the same graph: the operators that define an operator, an opset and an IR version that is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

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
            proto, line = expanded(proto, new)
            told.append(line)
        told.append(f"opset {opset_of(proto)} -> {limits.opset}")
        proto = _converted(proto, limits) if list(too_new(proto, limits.opset)) else _renamed(proto, limits.opset)
    if proto.ir_version > limits.ir_version:
        told.append(f"IR version {proto.ir_version} -> {limits.ir_version}")
        _check_types(proto, limits.ir_version)
        proto = onnx.ModelProto.FromString(proto.SerializeToString())
        proto.ir_version = limits.ir_version
    if opset_of(proto) and ir_version(opset_of(proto)) > proto.ir_version:
        raise Unsupported(f"IR version {limits.ir_version} carries no opset {opset_of(proto)}")
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # the checker's own class, and bare RuntimeError
        raise Unsupported("the model is none of that opset", got=first_line(error)) from error
    return proto, told


def expanded(proto: onnx.ModelProto, ops: Collection[str]) -> tuple[onnx.ModelProto, str]:
    """The model with every node of `ops` written as the operators that define it in the standard, and a line on it.

    Constants in what comes out are computed. Raises Unsupported where the definition asks for types that are not known.
    """
    import onnx
    import onnx_ir as ir
    import onnx_ir.passes.common as common
    from onnx.inliner import inline_selected_functions
    from onnxscript.optimizer import fold_constants

    counts = Counter(node.op_type for node in proto.graph.node if node.op_type in ops)
    typed = onnx.shape_inference.infer_shapes(proto)
    for node in typed.graph.node:
        if node.op_type in ops:
            _say_defaults(node, opset_of(proto))
    inputs = len(typed.graph.input)
    known = {value.name for value in typed.graph.input}
    # The definition of some depends on the types of their inputs, which are looked up among values, not weights.
    typed.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in typed.graph.initializer
        if t.name not in known
    )
    try:
        made = inline_selected_functions(typed, [("", op) for op in sorted(ops)], inline_schema_functions=True)
    except Exception as error:  # C++ assertions come as RuntimeError
        raise Unsupported(f"{', '.join(sorted(ops))} cannot be written otherwise", got=first_line(error)) from error
    del made.graph.input[inputs:]
    model = ir.from_proto(made)
    fold_constants(model, onnx_shape_inference=True, input_size_limit=1 << 16, output_size_limit=1 << 16)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    named = ", ".join(f"{op} ({count})" for op, count in sorted(counts.items()))
    return ir.to_proto(model), f"written as the operators that define it: {named}"


def defined(ops: Collection[str], opset: int) -> set[str]:
    """Those of `ops` that the standard defines by others."""
    import onnx

    found = set()
    for op in ops:
        try:
            schema: Any = onnx.defs.get_schema(op, opset, "")
        except onnx.defs.SchemaError:
            continue  # no operator of the standard, or not of this opset
        if schema.has_function or schema.has_context_dependent_function:
            found.add(op)
    return found


def _defined(node: onnx.NodeProto, proto: onnx.ModelProto) -> bool:
    return bool(defined({node.op_type}, opset_of(proto)))


def _say_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Write out the attributes that a node leaves to their defaults: definitions refer to them."""
    import onnx

    given = {attribute.name for attribute in node.attribute}
    for name, attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.add().CopyFrom(attribute.default_value)


def too_new(proto: onnx.ModelProto, opset: int) -> Iterator[onnx.NodeProto]:
    """Nodes of the default domain whose operator, as this model uses it, is newer than `opset`."""
    import onnx

    for node in nodes(proto.graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, opset_of(proto), "")
        except onnx.defs.SchemaError:
            continue  # no operator of the standard, or not of this opset: that is for the target to refuse
        if schema.since_version > opset:
            yield node


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


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
