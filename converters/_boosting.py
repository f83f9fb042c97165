"""Boosted trees of others in scikit-learn's route: whose they are, their own files, and how skl2onnx writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgerun import registry
from edgerun.converters import _lightgbm, _xgboost
from edgerun.errors import Unsupported

EXTRA = "boosting"
LIBRARIES: dict[str, ModuleType] = {"xgboost": _xgboost, "lightgbm": _lightgbm}
# What their own files begin with; of UBJSON the name of the first key.
_MAGIC = {
    ".json": ("xgboost", re.compile(rb'\s*\{\s*"(learner|version)"')),
    ".ubj": ("xgboost", re.compile(rb"\{.{0,12}(learner|version)", re.DOTALL)),
    ".txt": ("lightgbm", re.compile(rb"tree\s*\nversion=")),
}


def library(path: Path) -> str:
    """Whose file this is, by its ending and first bytes; "" when it is none of theirs."""
    name, magic = _MAGIC.get(path.suffix.lower(), ("", None))
    try:
        with open(path, "rb") as file:
            return name if magic is not None and magic.match(file.read(256)) else ""
    except (OSError, ValueError):
        return ""


def load(path: Path) -> Any:
    """The estimator in a file of `library`'s. The file is data: no trust is needed."""
    name = library(path)
    _require(name)
    return LIBRARIES[name].load(path)


def owner(step: Any) -> ModuleType | None:
    """The module here that knows an estimator, or None."""
    names = {name for kind in type(step).__mro__ for name in vars(kind)}  # properties of unfitted ones raise
    if "booster_" in names:
        return _lightgbm
    return _xgboost if {"get_booster", "get_params"} <= names else None


def prepare(parts: Iterable[Any]) -> None:
    """Make skl2onnx know the fitted boosters among `parts`. Raises Unsupported for what they hold and ONNX has not."""
    for part in parts:
        if (own := owner(part)) is not None and part.__sklearn_is_fitted__():
            _require(next(name for name, module in LIBRARIES.items() if module is own))
            own.refuse(part)
            own.register(part)


def splits(step: Any) -> Iterator[tuple[int, float]]:
    """(feature, threshold) of every split of a booster; nothing of other estimators."""
    if (own := owner(step)) is not None:
        yield from own.splits(step)


def categories(step: Any) -> dict[int, list[int]]:
    """The categories that a booster splits on, by feature."""
    own = owner(step)
    return {} if own is None else own.categories(step)


def numbers_of(classes: Any) -> np.ndarray:
    """Classes as whole numbers: their own, or their places."""
    array = np.asarray(classes)
    return array.astype(np.int64) if array.dtype.kind in "iu" else np.arange(len(array))


def registered(kind: type, write: Any) -> None:
    """Register `write(scope, operator, container)` with skl2onnx for estimators of `kind`."""
    import skl2onnx  # type: ignore[import-untyped]
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType  # type: ignore[import-untyped]

    def shapes(operator: Any) -> None:
        rows = operator.inputs[0].get_first_dimension()
        if len(operator.outputs) == 1:
            operator.outputs[0].type = FloatTensorType([rows, 1])
            return
        classes = len(operator.raw_operator.classes_)
        operator.outputs[0].type, operator.outputs[1].type = Int64TensorType([rows]), FloatTensorType([rows, classes])

    options = {"nocl": [True, False], "zipmap": [True, False, "columns"]} if hasattr(kind, "predict_proba") else None
    skl2onnx.update_registered_converter(
        kind, f"Edgerun{kind.__name__}", shapes, write, overwrite=True, options=options
    )


def _require(name: str) -> None:
    if reason := registry.missing(LIBRARIES[name].requires, EXTRA):
        raise Unsupported(f"{name}'s boosters cannot be read here", got=reason)
