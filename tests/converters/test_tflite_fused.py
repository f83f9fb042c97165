"""Operators that no exporter here writes: files built by the schema, judged by TFLite's interpreter."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'edgerun[tflite]'")

import edgerun  # noqa: E402
from edgerun.errors import Unsupported  # noqa: E402
from tests.converters.conftest import judged, packed  # noqa: E402

RNG = np.random.default_rng(3)
Entry = np.ndarray | tuple[str, Sequence[int]] | None  # a constant, or the dtype and shape of what is computed


class _File:
    """A model of one operator under construction; tensors are numbered in the order in which they are added."""

    def __init__(self) -> None:
        self.schema = importlib.import_module("ai_edge_litert.schema_py_generated")
        self.tensors: list[Any] = []
        self.buffers = [self.schema.BufferT()]

    def add(self, entry: Entry, variable: bool = False) -> int:
        if entry is None:
            return -1
        tensor = self.schema.TensorT()
        dtype, shape = (entry.dtype.name, entry.shape) if isinstance(entry, np.ndarray) else entry
        tensor.type = getattr(self.schema.TensorType, dtype.upper())
        tensor.shape, tensor.isVariable = np.array(shape, np.int32), variable
        tensor.name = f"t{len(self.tensors)}".encode()
        if isinstance(entry, np.ndarray):
            tensor.buffer = len(self.buffers)
            self.buffers.append(self.schema.BufferT())
            self.buffers[-1].data = np.frombuffer(entry.tobytes(), np.uint8)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def write(self, path: Path, kind: str, inputs: Sequence[int], outputs: Sequence[int], doors: Sequence[int],
              options: Any = None, custom: bytes | None = None) -> Path:  # fmt: skip
        schema = self.schema
        model, graph, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
        code.builtinCode = (
            schema.BuiltinOperator.CUSTOM if custom is not None else getattr(schema.BuiltinOperator, kind)
        )
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        code.customCode = kind.encode() if custom is not None else None
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if custom is not None:
            operator.customOptions = np.frombuffer(custom, np.uint8)
        elif options is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        graph.tensors, graph.operators = self.tensors, [operator]
        graph.inputs, graph.outputs = np.array(doors, np.int32), np.array(outputs, np.int32)
        model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], self.buffers
        path.write_bytes(packed(model))
        return path


def _drawn(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32) * np.float32(0.5)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("peepholes", [False, True])
def test_a_fused_lstm(time_major: bool, peepholes: bool, tmp_path: Path) -> None:
    """Within 1e-5 of TFLite's kernel, which begins every run at zero here; two runs do not see each other."""
    steps, batch, width, units = 7, 2, 3, 5
    file = _File()
    x = file.add(("float32", (steps, batch, width) if time_major else (batch, steps, width)))
    inputs = [
        x,
        *(file.add(_drawn(units, width)) for _ in range(4)),
        *(file.add(_drawn(units, units)) for _ in range(4)),
    ]
    inputs += [file.add(_drawn(units) if peepholes else None) for _ in range(3)]
    inputs += [file.add(_drawn(units)) for _ in range(4)] + [-1, -1]
    inputs += [file.add(("float32", (batch, units)), variable=True) for _ in range(2)]
    y = file.add(("float32", (steps, batch, units) if time_major else (batch, steps, units)))
    options = file.schema.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction, options.timeMajor = file.schema.ActivationFunctionType.TANH, time_major
    options.cellClip, options.projClip = 10.0, 0.0
    path = file.write(tmp_path / "lstm.tflite", "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], [x], options)
    found, result = judged(path)
    assert all(o.relative_error <= 1e-5 for o in result.outputs) and len(result.shapes) == 3
    kinds = [node.op_type for node in found.model.ir.graph]
    assert kinds == (["LSTM", "Squeeze"] if time_major else ["Transpose", "LSTM", "Squeeze", "Transpose"])


def test_an_lstm_with_a_projection_is_refused(tmp_path: Path) -> None:
    file = _File()
    x = file.add(("float32", (1, 4, 3)))
    inputs = [x, *(file.add(_drawn(5, 3)) for _ in range(4)), *(file.add(_drawn(5, 2)) for _ in range(4)), -1, -1, -1]
    inputs += [file.add(_drawn(5)) for _ in range(4)] + [file.add(_drawn(2, 5)), -1]
    inputs += [file.add(("float32", (1, 2)), variable=True), file.add(("float32", (1, 5)), variable=True)]
    options = file.schema.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction = file.schema.ActivationFunctionType.TANH
    y = file.add(("float32", (1, 4, 2)))
    path = file.write(tmp_path / "lstm.tflite", "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], [x], options)
    with pytest.raises(Unsupported, match="with a projection is not supported"):
        edgerun.convert(path)


@pytest.mark.parametrize("version", [4, 5])
def test_non_maximum_suppression(version: int, tmp_path: Path) -> None:
    """The same boxes in the same order, zeros behind them, and their number."""
    count, most = 40, 12
    file = _File()
    boxes, scores = file.add(("float32", (count, 4))), file.add(("float32", (count,)))
    limits = [np.array(most, np.int32), np.array(0.3, np.float32), np.array(0.1, np.float32)]
    more = [np.array(0.0, np.float32)] if version == 5 else []
    inputs = [boxes, scores, *(file.add(limit) for limit in (*limits, *more))]
    outputs = [file.add(("int32", (most,)))]
    outputs += [file.add(("float32", (most,)))] if version == 5 else []
    outputs += [file.add(("int32", ()))]
    options = getattr(file.schema, f"NonMaxSuppressionV{version}OptionsT")()
    path = file.write(tmp_path / "nms.tflite", f"NON_MAX_SUPPRESSION_V{version}", inputs, outputs, [boxes, scores],
                      options)  # fmt: skip
    _, result = judged(path)
    assert all(o.relative_error == 0 for o in result.outputs)


def test_the_detection_head_of_ssd(tmp_path: Path) -> None:
    """Boxes, classes and scores as TFLite's custom operator picks them, within 1e-5."""
    flexbuffers = importlib.import_module("flatbuffers.flexbuffers")
    count, classes, most = 60, 5, 10
    file = _File()
    encoded, scores = file.add(("float32", (1, count, 4))), file.add(("float32", (1, count, classes + 1)))
    anchors = np.concatenate([RNG.uniform(0, 1, (count, 2)), RNG.uniform(0.1, 0.4, (count, 2))], axis=1)
    inputs = [encoded, scores, file.add(anchors.astype(np.float32))]
    shapes = ((1, most, 4), (1, most), (1, most), (1,))
    outputs = [file.add(("float32", shape)) for shape in shapes]
    options = flexbuffers.Dumps(
        {"max_detections": most, "max_classes_per_detection": 1, "detections_per_class": 100, "use_regular_nms": False,
         "nms_score_threshold": 0.2, "nms_iou_threshold": 0.5, "num_classes": classes, "y_scale": 10.0, "x_scale": 10.0,
         "h_scale": 5.0, "w_scale": 5.0}
    )  # fmt: skip
    path = file.write(tmp_path / "ssd.tflite", "TFLite_Detection_PostProcess", inputs, outputs, [encoded, scores],
                      custom=bytes(options))  # fmt: skip
    _, result = judged(path)
    assert all(o.relative_error <= 1e-5 for o in result.outputs)
