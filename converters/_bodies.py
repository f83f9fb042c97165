"""Operators written with others: the function that computes one node, taken from the standard or from `_forms`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgerun.converters import _forms
from edgerun.converters._normalize import opset_of
from edgerun.converters._ort import first_line
from edgerun.errors import Unsupported

if TYPE_CHECKING:
    import onnx

DOMAIN = "edgerun.bodies"  # of the functions, between their making and their inlining
STANDARD = ("", "ai.onnx")


def inlined(proto: onnx.ModelProto, ops: Collection[str] = ()) -> tuple[onnx.ModelProto, Counter[str]]:
    """The model with the nodes of `ops` (all, when there are none) written as their bodies, and how many of each.

    Nodes without a body stay. Raises Unsupported where a body asks for types that are not known.
    """
    import onnx
    from onnx.inliner import inline_selected_functions

    try:
        made = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # the checker's own classes, and bare RuntimeError
        raise Unsupported("the types of the model are not known", got=first_line(error)) from error
    types, counts, opset = _types(made.graph), Counter[str](), opset_of(proto)
    for node in nodes(made.graph):
        if node.domain not in STANDARD or (ops and node.op_type not in ops):
            continue
        given = [types.get(name, onnx.TypeProto()) for name in node.input]
        body = _forms.form(node, given, opset) or _defined(node, given, opset)
        if body is None:
            continue
        counts[node.op_type] += 1
        body.domain, body.name = DOMAIN, f"{node.op_type}_{sum(counts.values())}"
        made.functions.append(body)
        node.domain, node.op_type = DOMAIN, body.name
        kept = [attribute for attribute in node.attribute if attribute.name in body.attribute]
        del node.attribute[:]
        node.attribute.extend(kept)
    if not counts:
        return proto, counts
    made.opset_import.add(domain=DOMAIN, version=1)
    chosen = [(DOMAIN, function.name) for function in made.functions if function.domain == DOMAIN]
    try:
        made = inline_selected_functions(made, chosen)
    except Exception as error:  # C++ assertions come as RuntimeError
        raise Unsupported(f"{', '.join(counts)} cannot be written otherwise", got=first_line(error)) from error
    imports = [entry for entry in made.opset_import if entry.domain != DOMAIN]
    del made.opset_import[:]
    made.opset_import.extend(imports)
    return made, counts


def _defined(node: onnx.NodeProto, types: list[onnx.TypeProto], opset: int) -> onnx.FunctionProto | None:
    """The standard's function for a node, defaults of its attributes written out; None where it has none.

    (onnx's own inliner does this for a node all of whose inputs are there.)
    """
    import onnx

    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None  # no operator of the standard, or not of this opset
    say_defaults(node, schema)
    fixed = [v for v in schema.function_opset_versions if v <= opset]
    bound = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    if fixed:
        data = schema.get_function_with_opset_version(max(fixed))
    elif bound:
        try:
            told = [kind.SerializeToString() for kind in types]
            data = schema.get_context_dependent_function_with_opset_version(max(bound), node.SerializeToString(), told)
        except Exception as error:
            raise Unsupported(f"{node.op_type} cannot be written otherwise", got=first_line(error)) from error
    else:
        return None
    body: onnx.FunctionProto = onnx.FunctionProto.FromString(data)
    if not body.node or not all(_fits(inner, opset) for inner in body.node):
        return None
    for entry in body.opset_import:
        if entry.domain in STANDARD:
            entry.version = opset
    return body


def _fits(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the operator of this opset still takes what a body written for an older one gives it."""
    import onnx

    schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    known = {attribute.name for attribute in node.attribute} <= set(schema.attributes)
    return known and schema.min_input <= len(node.input) <= schema.max_input


def say_defaults(node: onnx.NodeProto, schema: Any) -> None:
    """Write out the attributes that a node leaves to their defaults: definitions refer to them."""
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.add().CopyFrom(attribute.default_value)


def defined(ops: Collection[str], opset: int) -> set[str]:
    """Those of `ops` that the standard defines by others."""
    import onnx

    found = set()
    for op in ops:
        try:
            schema: Any = onnx.defs.get_schema(op, opset, "")
        except onnx.defs.SchemaError:
            continue
        if schema.has_function or schema.has_context_dependent_function:
            found.add(op)
    return found


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def _types(graph: onnx.GraphProto) -> Mapping[str, onnx.TypeProto]:
    """The type of every value, those of branches and loops included."""
    import onnx

    types = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        types.setdefault(tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                types |= _types(inner)
    return types
