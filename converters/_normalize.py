"""What every converted graph looks like: one opset, no Constant or dead nodes, unique names, specs on its door."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

PREFERRED_OPSET = 21  # carries 16-bit and blocked Q/DQ, and every runtime since 2024 reads it
OLDEST_OPSET = 13  # the first whose Q/DQ is per channel; older models are converted up


def opset_of(proto: onnx.ModelProto) -> int:
    """The default domain's opset; 0 when the model uses only other domains."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def to_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in exactly that opset. Raises Unsupported when an operator has no way there."""
    from onnx import version_converter

    if opset_of(proto) in (0, opset):
        return proto
    try:
        found = version_converter.convert_version(proto, opset)
        if _door(found) != _door(proto):  # an adapter for one operator dropped an axis
            raise ValueError(f"its inputs or outputs would become {', '.join(_door(found))}")
    except Exception as error:  # the C++ converter raises bare RuntimeError and ConvertError
        raise Unsupported(
            "the model cannot be brought to the target's opset",
            got=f"opset {opset_of(proto)}: {first_line(error)}",
            wanted=f"opset {opset}",
            do="export it again with another opset, or give --opset",
        ) from error
    return found


def _door(proto: onnx.ModelProto) -> list[str]:
    return [f"{v.name}[{len(v.type.tensor_type.shape.dim)}]" for v in (*proto.graph.input, *proto.graph.output)]


def fitting_opset(have: int, wish: int) -> int:
    """The opset to write: what the model has when that is between 13 and `wish`, else `wish`."""
    return have if OLDEST_OPSET <= have <= wish or have == 0 else wish


def ir_version(opset: int) -> int:
    """The oldest IR version that carries `opset`, at least 8 (onnx 1.10, 2021) so that files stay widely readable."""
    from onnx import helper

    return max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))


def normalize(model: ir.Model) -> ir.Model:
    """Inline functions, lift Constants, drop Identity, dead nodes and weights, and name every node once.

    Changes `model` in place and returns it. A model with branches or loops keeps its Identity nodes. An output that is
    an input stays so: a node between would need another name at one of the doors.
    """
    import onnx_ir.passes.common as common
    from onnx_ir.passes import Sequential

    _name_nodes(model)
    common.InlinePass()(model)
    passed = _without_passed(model.graph)
    # A branch may return a value of the graph around it only through an Identity.
    branches = len({id(node.graph) for node in model.graph.all_nodes()}) > 1
    clean = Sequential(
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        *([] if branches else [common.IdentityEliminationPass()]),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        common.OutputFixPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
    )
    try:
        model = clean(model).model
    except Exception as error:  # a pass wraps whatever it met
        cause = error.__cause__ or error
        raise EdgerunError(
            "the graph cannot be normalized", got=first_line(cause), do="check it with onnx.checker"
        ) from error
    for place, value in passed:
        model.graph.outputs.insert(place, value)
    _name_nodes(model)
    return model


def _without_passed(graph: ir.Graph) -> list[tuple[int, ir.Value]]:
    """Take off the outputs that are inputs, which OutputFixPass would rename; each with its place, the first first."""
    passed = [
        (n, value) for n, value in enumerate(graph.outputs) if value.is_graph_input() and value.const_value is None
    ]
    for place, _ in reversed(passed):
        del graph.outputs[place]
    return passed


def _name_nodes(model: ir.Model) -> None:
    """Give unnamed and twice-named nodes a name from operator and count: the same graph, the same names."""
    seen: Counter[str] = Counter()
    taken: set[str] = set()
    for node in model.graph.all_nodes():
        base = node.name or node.op_type
        name = base
        while name in taken:
            seen[base] += 1
            name = f"{base}_{seen[base]}"
        taken.add(name)
        node.name = name


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the value shapes that can be inferred; strict inference is for what comes from outside."""
    import onnx

    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def inferred(model: ir.Model) -> ir.Model:
    """As `infer_shapes`, of a graph that is normalized; weights go from the one into the other without a copy."""
    import onnx
    import onnx_ir as ir

    from edgerun import external

    data, weights = external.split(model)
    found = ir.from_proto(infer_shapes(onnx.ModelProto.FromString(data)))
    for name, tensor in weights.items():
        found.graph.initializers[name].const_value = tensor
    return found
