"""Dictionaries of scores, as exporters of scikit-learn write them by default (ZipMap): tables again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.passes import Feeds, Runner

if TYPE_CHECKING:
    import onnx

Classes = Mapping[str, list[int] | list[str]]  # of each output, the key of every column


def classes(graph: onnx.GraphProto) -> Classes:
    """The keys of every output of the model that a ZipMap makes, in the order of its input's columns."""
    doors = {value.name for value in graph.output}
    return {node.output[0]: _keys(node) for node in graph.node if _is(node) and node.output[0] in doors}


def as_tables(proto: onnx.ModelProto, found: Classes) -> None:
    """Make the outputs of `found` what goes into their ZipMap, float32 `[n, classes]`; the file's metadata have the
    classes as JSON."""
    from onnx import TensorProto, helper

    for place, node in enumerate(proto.graph.node):
        if _is(node) and node.output[0] in found:
            proto.graph.node[place].CopyFrom(helper.make_node("Identity", node.input, node.output, node.name))
    for value in proto.graph.output:
        if value.name in found:
            shape = [None, len(found[value.name])]
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))
    listed = list(found.values())
    told: Any = listed[0] if len(listed) == 1 else dict(found)
    helper.set_model_props(proto, {**{p.key: p.value for p in proto.metadata_props}, "classes": json.dumps(told)})


def runner(run: Runner, found: Classes) -> Runner:
    """`run`, its dictionaries as the tables that `as_tables` makes of them."""

    def tables(feeds: Feeds) -> dict[str, np.ndarray]:
        results: dict[str, Any] = run(feeds)
        for name, keys in found.items():
            results[name] = np.array([[row[key] for key in keys] for row in results[name]], np.float32)
        return results

    return tables


def _is(node: onnx.NodeProto) -> bool:
    return node.op_type == "ZipMap" and node.domain == "ai.onnx.ml"


def _keys(node: onnx.NodeProto) -> list[int] | list[str]:
    held = {attribute.name: attribute for attribute in node.attribute}
    if "classlabels_int64s" in held:
        return list(held["classlabels_int64s"].ints)
    return [text.decode() for text in held["classlabels_strings"].strings]
