"""Engines without their weights, and with others: TensorRT's refit, from the `.onnx` that an engine was made from."""

# `WEIGHTS=stripped` leaves the weights out of the file (STRIP_PLAN); the same ones come back when it is opened
# (REFIT_IDENTICAL, which lets the builder optimize for their values). `WEIGHTS=refittable` keeps them, and takes those
# of another model of the same graph (REFIT): NVIDIA's notes on 11.3 know of engines of that kind that drop a bias.

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgerun import distribution
from edgerun.errors import EdgerunError
from edgerun.targets import _tensorrt_library as tensorrt

STRIPPED, REFITTABLE = "stripped", "refittable"
KINDS = ("", STRIPPED, REFITTABLE)
SOURCE = "source"  # in an engine file's header: the SHA-256 of the model that a stripped engine was made from
OPTION = "REFIT"


def weights(header: Mapping[str, Any], given: Path | None, source: bytes | None) -> bytes | None:
    """The model that an engine of this header is refitted from, or None; `given` is the file that was named, `source`
    the model as it is known.

    Raises EdgerunError for a stripped engine without its model, or with another one, and for an engine that takes none.
    """
    model = given.read_bytes() if given is not None and given.is_file() else source
    if given is not None and not given.is_file():
        raise EdgerunError("there is no such model to take weights from", got=given, wanted="an .onnx file")
    kind = str(header.get("weights", ""))
    if kind == STRIPPED:
        do = f"--option {OPTION}=MODEL.onnx, the file that it was made from"
        if model is None:
            raise EdgerunError("the engine has no weights inside", do=do)
        for same in (lambda data: data, _as_written):  # the second reads the graph, and is rarely needed
            if hashlib.sha256(data := same(model)).hexdigest() == header.get(SOURCE):
                return data
        raise EdgerunError("this is not the model whose weights were taken out", got=given or "another", do=do)
    if given is None:
        return None
    if kind != REFITTABLE:
        raise EdgerunError("the engine takes no other weights", got=given, do=f"compile it with WEIGHTS={REFITTABLE}")
    return model


def _as_written(model: bytes) -> bytes:
    # The bytes that edgerun writes for a model of another writer, which is what the builder saw; where no graph can be
    # read, as on a device, `model` itself.
    if distribution.lacks("model"):
        return model
    from edgerun.model import Model

    try:
        return Model.from_bytes(model).to_bytes()
    except EdgerunError:
        return model


def refit(trt: Any, engine: Any, model: bytes, logger: Any) -> None:
    """Put the weights of ONNX `model` into `engine`. Raises EdgerunError with the library's reason."""
    refitter = trt.Refitter(engine, logger.sink)
    onnx_refitter = trt.OnnxParserRefitter(refitter, logger.sink)
    if not onnx_refitter.refit_from_bytes(model):
        count = onnx_refitter.num_errors
        told = tensorrt.shortened(str(onnx_refitter.get_error(0).desc())) if count else tensorrt.reason(logger.errors)
        raise EdgerunError(
            "TensorRT cannot take the weights of this model", got=told, do="name the one it was made from"
        )
    if missing := refitter.get_missing_weights():
        raise EdgerunError("the model lacks weights that the engine has", got=", ".join(sorted(missing)[:5]))
    if not refitter.refit_cuda_engine():
        raise EdgerunError("TensorRT could not refit the engine", got=tensorrt.reason(logger.errors))
