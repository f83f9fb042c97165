"""What users import of `onnxruntime.quantization`: `quantize_static` and `quantize_dynamic`, by `edgerun.compress`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import files
from edgerun.compat._nodes import Nodes, heard, member, refuse
from edgerun.errors import EdgerunError
from edgerun.model import Model

if TYPE_CHECKING:
    import onnx

__all__ = [
    "CalibrationDataReader", "CalibrationMethod", "QuantFormat", "QuantType", "quant_pre_process", "quantize_dynamic",
    "quantize_static",
]  # fmt: skip

QuantFormat = Enum("QuantFormat", {"QOperator": 0, "QDQ": 1})
CalibrationMethod = Enum("CalibrationMethod", {"MinMax": 0, "Entropy": 1, "Percentile": 2, "Distribution": 3})
QuantType = Enum(
    "QuantType", {"QInt8": 0, "QUInt8": 1, "QFLOAT8E4M3FN": 2, "QInt16": 3, "QUInt16": 4, "QInt4": 5, "QUInt4": 6}
)
RANGES = {"MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile"}
# What edgerun does, in the words of `extra_options`: these values may be given, others cannot be honoured.
AS_WE_DO: Mapping[str, object] = {
    "ActivationSymmetric": False, "ActivationRestrictedAsymmetric": False, "WeightSymmetric": True,
    "EnableSubgraph": False, "ForceQuantizeNoInputCheck": False, "AddQDQPairToWeight": False,
    "DedicatedQDQPair": False, "CalibTensorRangeSymmetric": False, "CalibMovingAverage": False,
    "CalibPercentile": 99.99, "QuantizeBias": True, "SmoothQuant": False,
}  # fmt: skip
CONSTANT_ONLY = ("MatMulConstBOnly", True)  # what the dynamic scheme does


class CalibrationDataReader:
    """Gives feeds one after the other: `get_next` returns a dict by input name, and None at the end.

    With a `rewind` method it is read again from the start; without, what it gives is kept on disk while it is needed.
    """

    def get_next(self) -> dict[str, Any] | None:
        """The next feeds, or None."""
        raise EdgerunError("a CalibrationDataReader has get_next()", got=type(self).__name__, do="define get_next")


def quantize_static(
    model_input: str | Path | onnx.ModelProto,
    model_output: str | Path,
    calibration_data_reader: Any = None,
    quant_format: Any = QuantFormat.QDQ,
    op_types_to_quantize: Sequence[str] | None = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    activation_type: Any = QuantType.QInt8,
    weight_type: Any = QuantType.QInt8,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    calibrate_method: Any = None,
    calibration_providers: Sequence[str] | None = None,
    extra_options: Mapping[str, Any] | None = None,
    calibration_cache_path: str | Path | None = None,
    *,
    target: str = "onnxruntime",
    allow_slower: bool = False,
) -> Model:
    """Static INT8 with Q/DQ, written to `model_output` (replaced when it exists), by `edgerun.compress`.

    Enums may be onnxruntime's own. Done in edgerun's way: weights are int8 per output channel whatever `per_channel`
    says, activations 8 bits of the sign that `target`'s kernels want; without `calibrate_method` the range estimator
    is chosen by measurement; weights go beside the model only over 1.8 GB. The result is timed against the float model
    on the first sample, as `edgerun compress` does: nodes that do not pay stay float, with a warning.

    Raises Unsupported for what cannot be honoured (QOperator, 16, 4 and float 8 bits, `reduce_range` unless this
    machine needs it, a calibration cache, other providers, other `extra_options`), EdgerunError for bad input, and
    GateFailed, with nothing written, where no placement is as fast as the float model (unless `allow_slower`).
    """
    from edgerun.verbs.compress import compress

    if calibration_data_reader is None:
        raise EdgerunError("no calibration_data_reader", do="give an object with get_next(), or any data edgerun takes")
    _check_formats(quant_format, activation_type, weight_type)
    _check_range(reduce_range, target)
    if calibration_cache_path is not None:
        refuse("calibration_cache_path", got=calibration_cache_path, do="leave it out")
    if calibration_providers is not None and list(calibration_providers) != ["CPUExecutionProvider"]:
        refuse("calibration_providers", got=list(calibration_providers), do="leave it out: calibration runs on the CPU")
    ranges = "auto" if calibrate_method is None else _ranges(calibrate_method)
    _check_extra(extra_options or {})
    model = _loaded(model_input, model_output, use_external_data_format)
    kept = _kept(Nodes(model, target), op_types_to_quantize, nodes_to_quantize, nodes_to_exclude)
    return compress(
        model, target=target, calibration=calibration_data_reader, output=model_output, ranges=ranges,
        keep_float=kept, allow_slower=allow_slower, clocked=heard,
        force=True,
    )  # fmt: skip


def quantize_dynamic(
    model_input: str | Path | onnx.ModelProto,
    model_output: str | Path,
    op_types_to_quantize: Sequence[str] | None = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    weight_type: Any = QuantType.QInt8,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    extra_options: Mapping[str, Any] | None = None,
    *,
    target: str = "onnxruntime",
    allow_slower: bool = False,
) -> Model:
    """INT8 products whose inputs are quantized as they come, written to `model_output` (replaced when it exists), by
    `edgerun.compress` with the scheme `w8a8_dynamic`.

    Done in edgerun's way: weights are int8 per output channel whatever `per_channel` says; LSTMs run on integers too
    where `target` has a kernel, other recurrent layers and large tables become smaller; Conv stays float. The rest,
    what is timed, and what is refused are as in `quantize_static`. What is asked for by its op or name and stays float
    all the same is warned of.
    """
    from edgerun.verbs.compress import compress

    _check_type("weight_type", weight_type)
    _check_range(reduce_range, target)
    _check_extra({key: value for key, value in (extra_options or {}).items() if (key, value) != CONSTANT_ONLY})
    model = _loaded(model_input, model_output, use_external_data_format)
    nodes = Nodes(model, target, "w8a8_dynamic")
    kept = _kept(nodes, op_types_to_quantize, nodes_to_quantize, nodes_to_exclude)
    asked = {op for op in op_types_to_quantize or () if op in nodes.all.values()} - {*nodes.source.values()}
    asked |= {name for name in nodes_to_quantize or () if nodes.products.get(name, name) not in nodes.left}
    if asked:
        what = "stays float: no kernel quantizes its input while it runs"
        warnings.warn(f"{what}: {', '.join(sorted(asked))}", stacklevel=2)
    return compress(model, scheme="w8a8_dynamic", target=target, output=model_output, keep_float=kept,
                    allow_slower=allow_slower, clocked=heard, force=True)  # fmt: skip


def quant_pre_process(
    input_model: str | Path | onnx.ModelProto | None = None,
    output_model_path: str | Path | None = None,
    skip_optimization: bool = False,
    skip_onnx_shape: bool = False,
    skip_symbolic_shape: bool = False,
    auto_merge: bool = False,
    int_max: int = 2**31 - 1,
    guess_output_rank: bool = False,
    verbose: int = 0,
    save_as_external_data: bool = False,
    all_tensors_to_one_file: bool = False,
    external_data_location: str | None = None,
    external_data_size_threshold: int = 1024,
    *,
    input_model_path: str | Path | None = None,
) -> None:
    """Write the model to `output_model_path` as it is: `quantize_static` and `quantize_dynamic` fold constants and
    batch normalizations, and infer shapes, themselves, and nodes keep the names that can be excluded.

    So what says how to do either changes nothing. Weights go beside the model only over 1.8 GB. Raises Unsupported for
    an `external_data_location`.
    """
    given = input_model if input_model is not None else input_model_path
    if given is None or output_model_path is None:
        raise EdgerunError("quant_pre_process reads a model and writes one", wanted="input_model, output_model_path")
    if external_data_location is not None:
        refuse("external_data_location", got=external_data_location, do="leave it out")
    _loaded(given, output_model_path, save_as_external_data).save(output_model_path)


def _loaded(given: str | Path | onnx.ModelProto, output: str | Path, external: bool) -> Model:
    """The float model. Raises EdgerunError where `output` is its own file, as `compress` does."""
    files.refuse_same(Path(output), given)
    model = Model.load(given) if isinstance(given, (str, Path)) else Model.from_proto(given)
    if external and model.weight_bytes() <= 1_800_000_000:
        warnings.warn("the weights stay inside the model: it is under 1.8 GB", stacklevel=3)
    return model


def _check_range(reduce_range: bool, target: str) -> None:
    from edgerun import registry

    if reduce_range and not registry.target(target).quantization().reduced_range:
        refuse("reduce_range", got=True, do="compress on the device's kind of machine: the range follows its kernels")


def _check_formats(quant_format: Any, activation_type: Any, weight_type: Any) -> None:
    if (name := member(quant_format, QuantFormat, "quant_format")) != "QDQ":
        refuse("quant_format", got=name, do="use QuantFormat.QDQ: runtimes fuse it into the same integer kernels")
    for what, value in (("activation_type", activation_type), ("weight_type", weight_type)):
        _check_type(what, value)


def _check_type(what: str, value: Any) -> None:
    if (name := member(value, QuantType, what)) not in ("QInt8", "QUInt8"):
        refuse(what, got=name, do="use QuantType.QInt8")
    if what == "weight_type" and name == "QUInt8":
        warnings.warn("the weights become int8: every integer kernel takes them, and they are as small", stacklevel=4)


def _ranges(method: Any) -> str:
    name = member(method, CalibrationMethod, "calibrate_method")
    if name not in RANGES:
        refuse("calibrate_method", got=name, do=f"use {', '.join(RANGES)}, or leave it out")
    return RANGES[name]


def _check_extra(options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key == "CalibMaxIntermediateOutputs":  # a bound on memory, which is bounded here anyway
            continue
        if key not in AS_WE_DO or value != AS_WE_DO[key]:
            refuse(f"extra_options[{key!r}]", got=value, do="leave it out")


def _kept(
    nodes: Nodes, op_types: Sequence[str] | None, only: Sequence[str] | None, excluded: Sequence[str] | None
) -> list[str]:
    """The nodes to keep in float: excluded ones, and those that no list of what to quantize names."""
    nodes.check(only or ())
    found = set(nodes.kept(excluded or ()))
    if op_types or only:  # as in the original, an empty list means no wish
        named = {nodes.products.get(name, name) for name in only or ()}
        found |= {name for name, op in nodes.source.items() if op_types and op not in op_types}
        found |= {name for name in nodes.source if only and name not in named}
    return sorted(found)
