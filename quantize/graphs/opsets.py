"""A graph in a newer opset, for number formats that older ones do not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.errors import Unsupported

if TYPE_CHECKING:
    import onnx_ir as ir


def at_least(model: ir.Model, opset: int, what: str) -> ir.Model:
    """`model`, or its like in `opset`, which is the first with `what`. Raises Unsupported where there is no way."""
    if (own := model.opset_imports.get("", 0)) >= opset:
        return model
    import onnx_ir as ir
    from onnx import helper, version_converter

    try:
        newer = version_converter.convert_version(ir.to_proto(model), opset)
    except Exception as error:  # the C++ converter raises bare RuntimeError and ConvertError
        raise Unsupported(
            f"opset {own} has no {what}, and the model cannot be brought to one that has",
            got=str(error).splitlines()[0][:200], wanted=f"opset {opset} or newer",
            do=f"edgerun convert it from its source with --opset {opset}",
        ) from error  # fmt: skip
    newer.ir_version = max(newer.ir_version, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    made = ir.from_proto(newer)
    made.metadata_props.update(model.metadata_props)  # which the converter forgets
    return made
