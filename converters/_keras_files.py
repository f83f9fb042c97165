"""Reading `.keras` and `.h5` files: what they ask for is looked at before anything of theirs is built."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgerun.converters._keras_graph import LAYERS
from edgerun.converters._keras_walk import key_of
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported

_LARGEST_CONFIG = 64 << 20  # bytes
_CONTAINERS = {"Functional", "Model", "Sequential", "InputLayer"}


def load(path: Path) -> Any:
    """The model. Raises Unsupported naming every layer that cannot be converted, EdgerunError for a damaged file."""
    config = _config(path)
    if refused := list(_refused(config.get("config", {}).get("layers", []), "")):
        raise Unsupported(
            "the model has layers that cannot be converted", got="\n    " + "\n    ".join(refused),
            do="replace them by built-in layers; a Lambda is a program in the file and is never run",
        )  # fmt: skip
    import keras  # type: ignore[import-untyped]

    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a layer's constructor or h5py raises
        raise EdgerunError(
            "Keras cannot read the file", got=first_line(error), do="save it again with model.save"
        ) from error


def _config(path: Path) -> dict[str, Any]:
    try:
        text = _zip_config(path) if zipfile.is_zipfile(path) else _h5_config(path)
        config = json.loads(text)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise EdgerunError(
            "not a Keras model file, or a damaged one",
            got=first_line(error),
            wanted="what model.save('x.keras') writes",
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise EdgerunError(
            "the file holds no Keras model", got=type(config).__name__, do="save the whole model, not weights"
        )
    return config


def _zip_config(path: Path) -> str | bytes:
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo("config.json").file_size > _LARGEST_CONFIG:
            raise ValueError("config.json is too large")
        return archive.read("config.json")


def _h5_config(path: Path) -> str | bytes:
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ValueError("the .h5 holds weights without a model")
        text: Any = file.attrs["model_config"]
        return text if isinstance(text, bytes) else str(text)


def _refused(layers: Any, prefix: str) -> Iterator[str]:
    """A line for every layer of the file, nested models included, that is not one of ours."""
    for entry in layers:
        kind, config = entry.get("class_name", ""), entry.get("config") or {}
        name = f"{prefix}{config.get('name') or entry.get('name', '')}"
        module = entry.get("module") or "keras"
        if kind in _CONTAINERS:
            yield from _refused(config.get("layers", []), f"{name}/")
        elif key_of(module, kind) not in LAYERS:
            package = "" if module.startswith("keras") else f" of {module}"
            yield f"{name}: {kind}{package} is not supported"
