"""Reading `.keras` and `.h5` files: what they ask for is looked at before anything of theirs is built."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgerun import _late
from edgerun.converters import _factory
from edgerun.converters._keras_graph import LAYERS
from edgerun.converters._keras_refused import FOREIGN, REASONS
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported

_LARGEST_CONFIG = 64 << 20  # bytes
_CONTAINERS = {"Functional", "Model", "Sequential", "InputLayer"}
_WAY_OUT = "name the Python that builds the model: --factory module:callable; the file then gives the weights alone"


def load(path: Path) -> Any:
    """The model. Raises Unsupported naming every layer that cannot be converted, EdgerunError for a damaged file."""
    config = _config(path)
    kind, module = str(config.get("class_name", "")), str(config.get("module") or "keras")
    if kind not in _CONTAINERS or not module.startswith("keras"):
        raise Unsupported(f"the file's model is a {kind[:80]} of {module[:80]}, whose code is not in it", do=_WAY_OUT)
    if strangers := sorted(set(_strangers(config["config"]))):
        raise EdgerunError(
            "the file asks for what is not Keras's: building it would run code", got=", ".join(strangers[:8]),
            do="replace it by built-in initializers, activations, regularizers and constraints",
        )  # fmt: skip
    if refused := list(_refused(config.get("config", {}).get("layers", []), "")):
        raise Unsupported(
            "the model has layers that cannot be converted", got="\n    " + "\n    ".join(refused),
            do=f"replace them by built-in layers, or {_WAY_OUT} (a Lambda in a file is a program and is never run)",
        )  # fmt: skip
    import keras  # type: ignore[import-untyped]

    try:
        with _late.uncollected():
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a layer's constructor or h5py raises
        raise EdgerunError(
            "Keras cannot read the file", got=first_line(error), do="save it again with model.save"
        ) from error


def structure(path: Path) -> dict[str, Any] | None:
    """The configuration of a `.keras` file that `load` has read, for `of`; None for an `.h5`, whose form is older."""
    return _config(path) if zipfile.is_zipfile(path) else None


def of(config: Any) -> Any:
    """The model of a configuration, with weights as they are initialized."""
    import keras

    return keras.saving.deserialize_keras_object(config, safe_mode=True)


def built(factory: str) -> Any:
    """The model that the user's own function builds."""
    import keras

    return _factory.built(factory, keras.Model, "keras.Model")


def fill(model: Any, path: Path) -> None:
    """Give a model the weights of a file: a whole model's or weights alone."""
    try:
        model.load_weights(path)
    except Exception as error:  # h5py's, zipfile's and Keras's own
        raise EdgerunError(
            "the file's weights do not fit the model that the factory builds", got=first_line(error),
            do="name the factory of exactly this model",
        ) from error  # fmt: skip


def _config(path: Path) -> dict[str, Any]:
    try:
        text = _zip_config(path) if zipfile.is_zipfile(path) else _h5_config(path)
        config = json.loads(text)
    except (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile) as error:
        raise EdgerunError(
            "not a Keras model file, or a damaged one",
            got=first_line(error),
            wanted="what model.save('x.keras') writes",
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict) or not _whole(config["config"]):
        raise EdgerunError(
            "the file holds no Keras model", got=type(config).__name__, do="save the whole model, not weights"
        )
    return config


def _whole(config: Any) -> bool:
    """Whether `layers`, here and in nested models, are lists of layers."""
    layers = config.get("layers", []) if isinstance(config, dict) else None
    return isinstance(layers, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("config") or {}, dict) and _whole(entry.get("config") or {})
        for entry in layers
    )


def _strangers(value: Any) -> Iterator[str]:
    """Every object of another module than Keras's that a layer's configuration names; layers themselves are refused by
    their class."""
    if isinstance(value, list):
        for item in value:
            yield from _strangers(item)
    if not isinstance(value, dict):
        return
    module = value.get("module")
    if module and "class_name" in value and str(module).partition(".")[0] != "keras":
        if not isinstance(value.get("config"), dict) or "name" not in value["config"]:
            yield f"{module}.{value['config'] if module == 'builtins' else value['class_name']}"
    for item in value.values():
        yield from _strangers(item)


def _zip_config(path: Path) -> str | bytes:
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo("config.json").file_size > _LARGEST_CONFIG:
            raise ValueError("config.json is too large")
        return archive.read("config.json")


def _h5_config(path: Path) -> str | bytes:
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ValueError("the .h5 holds weights without a model: name what builds it with --factory")
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
        elif kind in REASONS and module.startswith("keras"):
            yield f"{name}: {kind} is not supported: {REASONS[kind]}"
        elif kind in FOREIGN and module.startswith(("keras", "tensorflow_hub")):
            yield f"{name}: {kind} is not supported: {FOREIGN[kind]}"
        elif kind == "Lambda" or not _keras_own(module, kind):
            package = "" if module.startswith("keras") else f" of {module}"
            yield f"{name}: {kind}{package} is not supported"


def _keras_own(module: str, kind: str) -> bool:
    """Is this a class that Keras itself has?"""
    from keras import layers

    return module.startswith("keras.src.") or (module.startswith("keras") and (kind in LAYERS or hasattr(layers, kind)))
