"""What every converted graph looks like: one opset, no Constant or dead nodes, unique names, specs on its door."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_OLDEST_OPSET = 13  # the first whose Q/DQ is per channel; older models are converted up


def opset_of(proto: onnx.ModelProto) -> int:
    """The default domain's opset; 0 when the model uses only other domains."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def to_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in exactly that opset. Raises Unsupported when an operator has no way there."""
    from onnx import version_converter

    if opset_of(proto) in (0, opset):
        return proto
    try:
        return version_converter.convert_version(proto, opset)
    except Exception as error:  # the C++ converter raises bare RuntimeError and ConvertError
        raise Unsupported(
            "the model cannot be brought to the target's opset",
            got=f"opset {opset_of(proto)}: {first_line(error)}",
            wanted=f"opset {opset}",
            do="export it again with another opset, or give --opset",
        ) from error


def fitting_opset(have: int, wish: int) -> int:
    """The opset to write: what the model has when that is between 13 and `wish`, else `wish`."""
    return have if _OLDEST_OPSET <= have <= wish or have == 0 else wish


def ir_version(opset: int) -> int:
    """The oldest IR version that carries `opset`, at least 8 (onnx 1.10, 2021) so that files stay widely readable."""
    from onnx import helper

    return max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))


def normalize(model: ir.Model) -> ir.Model:
    """Inline functions, lift Constants, drop Identity, dead nodes and weights, and name every node once.

    Changes `model` in place and returns it.
    """
    import onnx_ir.passes.common as common
    from onnx_ir.passes import Sequential

    _name_nodes(model)
    clean = Sequential(
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.IdentityEliminationPass(),
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
    _name_nodes(model)
    return model


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
    """The model with inferred value shapes. Raises EdgerunError where declared and inferred types contradict."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise EdgerunError(
            "the graph's types or shapes contradict each other", got=first_line(error), do="export the model again"
        ) from error
