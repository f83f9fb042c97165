"""The ONNX reference evaluator: each operator as its specification defines it, on numpy, with no optimization."""

from __future__ import annotations

import functools
import importlib
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import files, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Feeds, Issue, Limits, NodeTime, Quantization
from edgerun.runtime import Engine, Options, Session, TensorSpec
from edgerun.targets._reference_cells import cells

if TYPE_CHECKING:
    from edgerun.devices import Device
    from edgerun.model import Model

summary = "the ONNX reference evaluator: slow, and what the others are compared with"
requires = ("onnx", "onnx_ir")
extra = "compress"
takes: Mapping[str, str] = {}
suffixes = (".onnx",)


def available() -> str | None:
    """None, or what to install."""
    return registry.missing(requires, extra)


def runnable() -> str | None:
    """None: what compiles here runs here."""
    return None


def device() -> Mapping[str, str]:
    """Runtime, version and architecture: it computes the same on every machine that numpy runs on."""
    return {"runtime": "onnx.reference", "version": _onnx().__version__, "arch": platform.machine()}


def limits() -> Limits:
    """What the installed onnx package defines."""
    return Limits(int(_onnx().IR_VERSION), int(importlib.import_module("onnx.defs").onnx_opset_version()))


def check(model: Model) -> list[Issue]:
    """The ops that the evaluator has no implementation of; it reports the first of them."""
    if found := limits().exceeded(model):
        return found
    try:
        _evaluator(model.to_proto())
    except EdgerunError as error:
        return [Issue("", "", str(error.got))]
    return []


def compile(model: Model, options: Options) -> Engine:
    """The model's own bytes."""
    return Engine("reference", model.to_bytes(), model.inputs, model.outputs, device(), model.digest())


def save(engine: Engine, path: Path) -> None:
    """Write the engine as one `.onnx` file, atomically."""
    if not isinstance(engine.payload, bytes):
        raise EdgerunError("the engine is a file already", got=engine.payload, do="copy that file")
    if path.suffix != ".onnx":
        raise EdgerunError("the reference reads .onnx files", got=path.name, wanted="-o NAME.onnx")
    files.write_bytes(path, engine.payload)


def load(engine: Engine, options: Options) -> Session:
    """A session on numpy; it has no options, and says so when it gets some."""
    from edgerun.model import Model

    if options.extra:
        raise EdgerunError("the reference has no options", got=", ".join(options.extra))
    if isinstance(engine.payload, Path):
        model = Model.load(engine.payload)
    else:
        model = Model.from_proto(_parsed(engine.payload))
    proto = model.to_proto()
    told = {pair.key: pair.value for pair in proto.metadata_props}
    return _Session(_evaluator(proto), model.inputs, model.outputs, told)


def profile(engine: Engine, feeds: Iterable[Feeds], options: Options) -> list[NodeTime]:
    """Refused: its times say nothing about any device."""
    raise Unsupported("the reference has no kernels to time", do="profile with --target onnxruntime or openvino")


class _Session(Session):
    """Outputs are copied: the evaluator may hand back an input or a weight."""

    def __init__(
        self, evaluator: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], told: Mapping[str, str]
    ) -> None:
        super().__init__(inputs, outputs)
        self._metadata = told
        self._evaluator: Any = evaluator

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        try:
            with np.errstate(all="ignore"):
                results = self._evaluator.run(None, dict(feeds))
        except Exception as error:  # it runs ops in plain Python and lets all their errors through
            raise EdgerunError("the reference could not run these feeds", got=error) from error
        return {spec.name: _owned(value) for spec, value in zip(self.outputs, results, strict=True)}

    def _close(self) -> None:
        self._evaluator = None


def _owned(value: Any) -> Any:
    if value is None or isinstance(value, list):  # an absent optional, a sequence
        return value and [_owned(item) for item in value]
    array = np.array(value)
    return array.astype(object) if array.dtype.kind == "U" else array  # strings as the other runtimes give them


def _onnx() -> Any:
    return importlib.import_module("onnx")


def _parsed(data: bytes) -> Any:
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        proto = _onnx().load_model_from_string(data)
    except decode_error as error:
        raise EdgerunError("these bytes are no ONNX model", got=error) from error
    if not proto.graph.output:
        raise EdgerunError("these bytes are no ONNX model", got="a graph without outputs")
    return proto


@functools.cache
def _loop() -> Any:
    """The evaluator's Loop (onnx 1.23) ran no iteration without a condition in place of all, and joined what each gave
    along its first axis in place of a new one."""
    loop: Any = importlib.import_module("onnx.reference.ops.op_loop").Loop

    class Loop(loop):  # type: ignore[misc]
        op_domain = ""

        def _run(
            self, trips: Any, condition: Any, *states: Any, context: Any = None, body: Any = None, **told: Any
        ) -> Any:
            step, scans, goes_on = 0, list[Any](), condition is None or bool(condition)
            while goes_on and (trips is None or step < trips):
                own = zip(self.body.input_names, (np.array(step, np.int64), np.array(True), *states), strict=False)
                goes_on, *found = self._run_body({**(context or {}), **dict(own)}, **told)
                states, step = tuple(found[: self.N]), step + 1
                scans.append(found[self.N :])
            if self.K and not scans:
                raise ValueError("a Loop without an iteration has scan outputs of no known shape")
            return (*states, *map(np.stack, zip(*scans, strict=True)))

    return Loop


@functools.cache
def _optional() -> Any:
    """The evaluator's Optional, which made a list of what it holds (onnx 1.23)."""
    optional: Any = importlib.import_module("onnx.reference.ops.op_optional").Optional

    class Optional(optional):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Any = None, type: Any = None) -> Any:
            return (x,)

    return Optional


def _evaluator(proto: Any) -> Any:
    own = [_loop(), _optional(), *cells()]
    try:
        return importlib.import_module("onnx.reference").ReferenceEvaluator(proto, new_ops=own)
    except Exception as error:  # RuntimeContextError, NotImplementedError and others, by op
        raise Unsupported("the reference cannot take the model", got=error) from error


def quantization(device: Device | None = None) -> Quantization:
    """Q/DQ stands for any op: the evaluator computes what is written, on every device."""
    return Quantization(
        schemes=("w8a8", "w8a16"),
        activation="uint8",
        compute=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        through=frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"}),
        join=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}),
        absorbed=frozenset({"Relu", "Clip"}),
        float_output=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        timed=False,
    )
