"""The preprocessing contract as other tools write it: Transformers, timm, and Ultralytics' exports.

    preprocessor_config.json   Transformers' image processors (edgerun.processors)
    config.json                timm's (edgerun.processors)
    model.onnx                 its metadata: edgerun's own contract, or imgsz, stride and task of an Ultralytics export

The kind is told by the keys. What is not understood is refused by name: nothing is guessed, nothing is left out.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgerun import distribution, onnx_file
from edgerun.errors import EdgerunError
from edgerun.preprocess import Preprocessing, not_understood

OWN = "edgerun.preprocessing"  # of a model's metadata
_FOREIGN = {  # keys of Transformers' and timm's files
    "image_processor_type", "feature_extractor_type", "do_resize", "do_normalize", "image_mean", "pretrained_cfg",
    "input_size",
}  # fmt: skip
LONGEST = 1 << 20  # bytes of a contract's file, or of one text in a model's metadata


def read(path: Path) -> Preprocessing:
    """The contract in a file of any kind above. Raises EdgerunError for what cannot be read or is not understood."""
    if path.suffix.lower() == ".onnx":
        if (found := told(onnx_file.metadata(path))) is None:
            raise EdgerunError("the model's metadata holds no preprocessing contract", got=path)
        return found
    return parsed(values(path, "preprocessing"))


def values(path: Path, kind: str) -> dict[str, Any]:
    """The JSON object in a file of a `kind` of contract."""
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError(f"{path.stat().st_size} bytes are no contract")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EdgerunError(f"cannot read the {kind} contract", got=f"{path}: {error}", wanted="a JSON file") from error
    if not isinstance(found, dict):
        wanted = '{"size": [224, 224], …}' if kind == "preprocessing" else '{"kind": "classes", …}'
        raise EdgerunError(f"the {kind} contract is not an object", got=path, wanted=wanted)
    return found


def told(metadata: Mapping[str, str]) -> Preprocessing | None:
    """The contract in a model's metadata: edgerun's own, else that of an Ultralytics export, else None."""
    if OWN in metadata:
        return Preprocessing.from_json(own(metadata[OWN], "preprocessing"))
    return ultralytics(metadata) if {"task", "imgsz", "stride"} <= set(metadata) else None


def own(text: str, kind: str) -> dict[str, Any]:
    """The JSON object of a `kind` of contract in a model's metadata."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise EdgerunError(f"the {kind} contract in the metadata is damaged", got=str(error)) from error


def parsed(values: Mapping[str, Any]) -> Preprocessing:
    """The contract that JSON values hold, of the kind that their keys tell."""
    if {"task", "imgsz", "stride"} <= set(values):
        return ultralytics(values)
    if not _FOREIGN & set(values):
        return Preprocessing.from_json(values)
    if distribution.lacks("processors"):
        raise distribution.absent("what reads a preprocessing file of Transformers or timm")
    from edgerun import processors

    return processors.parsed(values)


def ultralytics(values: Mapping[str, Any]) -> Preprocessing:
    """The metadata of an Ultralytics export: letterbox on grey 114 (OpenCV's INTER_LINEAR), or, for classifiers, the
    shortest edge and a middle crop; RGB / 255. Its values are Python literals as texts."""
    task, size = values["task"], literal(values, "imgsz")
    if type(size) is int:
        size = [size, size]
    if (channels := literal(values, "channels", 3)) != 3:
        raise not_understood("channels", channels, "3")
    if task == "classify" and isinstance(size, list) and len(set(map(str, size))) == 1:
        geometry: dict[str, Any] = {"resize": "shortest"}
    elif task in ("detect", "segment", "pose", "obb"):
        geometry = {"resize": "letterbox", "fill": 114, "antialias": False}
    else:
        raise not_understood("task", f"{task} of {size}", "detect, segment, pose, obb, or classify of squares")
    return Preprocessing.from_json({"size": size, "scale": 1 / 255, **geometry})


def literal(values: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """A value, or the Python literal in its text; ast.literal_eval knows no names and no calls."""
    text = values.get(key, default)
    if not isinstance(text, str):
        return text
    try:
        if len(text) > LONGEST:
            raise ValueError(f"{len(text)} characters")
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise not_understood(key, text[:80], "a Python literal") from error
