"""The conformance cases of ONNX, as the onnx package generates them: models, inputs, outputs and tolerances."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

OPSETS = range(7, 27)  # of the default domain; what the preview domains define may still change
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")  # the models of "real" need a download


@dataclass(frozen=True)
class Case:
    """One case: `sets` are pairs of inputs and outputs in the model's order; a sequence is a list, an absent optional
    None. `group` is the operator that it is for, or its kind. |y - r| <= atol + rtol·|r| is demanded of every element.
    """

    name: str
    group: str
    model: bytes
    sets: tuple[tuple[list[Any], list[Any]], ...]
    rtol: float
    atol: float


def cases() -> list[Case]:
    """All cases of these opsets, in the order of the package."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = [(kind, case) for kind in KINDS for case in load_model_tests(kind=kind)]
    operators: dict[str, str] = {}
    kept = []
    for kind, case in found:
        model = case.model or onnx.load(Path(str(case.model_dir)) / "model.onnx")
        if not _wanted(model):
            continue
        sets = case.data_sets if case.data_sets is not None else list(_stored(Path(str(case.model_dir)), model))
        if kind == "node" and len(model.graph.node) == 1:
            operators[case.name] = model.graph.node[0].op_type
        origin = re.sub(r"_expanded.*$", "", case.name)  # the same, written with other operators
        group = operators.get(origin, "several operators") if kind == "node" else kind
        plain = tuple(([_plain(v) for v in ins], [_plain(v) for v in outs]) for ins, outs in sets)
        kept.append(Case(case.name, group, model.SerializeToString(), plain, case.rtol, case.atol))
    return kept


def _wanted(model: onnx.ModelProto) -> bool:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return opsets.get("", OPSETS[0]) in OPSETS and not any("preview" in domain for domain in opsets)


def _stored(folder: Path, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    for place in sorted(folder.glob("test_data_set_*")):
        values = []
        for side, doors in (("input", model.graph.input), ("output", model.graph.output)):
            files = [place / f"{side}_{index}.pb" for index in range(len(list(place.glob(f"{side}_*.pb"))))]
            values.append([_read(f.read_bytes(), door) for f, door in zip(files, doors, strict=False)])
        yield values[0], values[1]


def _read(data: bytes, door: onnx.ValueInfoProto) -> Any:
    if door.type.HasField("sequence_type"):
        return onnx.SequenceProto.FromString(data)
    if door.type.HasField("optional_type"):
        return onnx.OptionalProto.FromString(data)
    return onnx.TensorProto.FromString(data)


def _plain(value: Any) -> Any:
    """An array, a list of arrays, or None."""
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    elif isinstance(value, onnx.SequenceProto):
        value = numpy_helper.to_list(value)
    elif isinstance(value, onnx.OptionalProto):
        value = numpy_helper.to_optional(value)
    if value is None:
        return None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array
