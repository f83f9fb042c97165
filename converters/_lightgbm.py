"""LightGBM's boosters: reading `.txt` files, what their trees split on, and writing them with onnxmltools.

Thresholds are float64 and inputs float32: `x <= t` is `x <= t'` for every float32 x, with t' the largest float32 that
is not above t (the nearest one may be, and then sends x = t' to the other side).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported

requires = ("lightgbm", "onnxmltools")
# Those whose raw score is the answer, those with exp behind it, and the classifiers.
PLAIN = ("regression", "regression_l1", "huber", "fair", "quantile", "mape")
LOG = ("poisson", "gamma", "tweedie")
CLASSES = ("binary", "multiclass")
LARGEST = float(np.finfo(np.float32).max)


def load(path: Path) -> Any:
    """An estimator around the booster that a file holds; the file is data, and runs nothing."""
    import lightgbm

    with open(path, "rb") as file:  # half a file makes LightGBM's reader crash
        if not any(line.startswith(b"end of trees") for line in file):
            raise EdgerunError("the LightGBM file is truncated", got="no 'end of trees'", do="save it again")
    try:
        booster = lightgbm.Booster(model_file=str(path))
        objective = str(booster.dump_model(num_iteration=1).get("objective", ""))
    except Exception as error:  # LightGBMError, and JSON's own
        raise EdgerunError(
            "LightGBM cannot read the file", got=first_line(error), do="save it again with Booster.save_model"
        ) from error
    classifier, regressor = _estimators()
    return (classifier if objective.startswith(CLASSES) else regressor)(booster)


@functools.cache
def _estimators() -> tuple[type, type]:
    """A classifier and a regressor around a booster alone, which LightGBM itself makes by training only."""
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # type: ignore[import-untyped]

    class _Booster(BaseEstimator):  # type: ignore[misc]
        booster_: Any = None

        def __init__(self, booster_: Any) -> None:
            self.booster_, self.n_features_in_ = booster_, booster_.num_feature()

        def fit(self, x: Any, y: Any) -> Any:
            return self  # a booster out of a file is trained

        def __sklearn_is_fitted__(self) -> bool:
            return True

    class BoosterRegressor(RegressorMixin, _Booster):  # type: ignore[misc]
        def predict(self, x: Any) -> Any:
            return self.booster_.predict(x)

    class BoosterClassifier(ClassifierMixin, _Booster):  # type: ignore[misc]
        def __init__(self, booster_: Any) -> None:
            super().__init__(booster_)
            self.classes_ = np.arange(max(2, booster_.num_model_per_iteration()))

        def predict_proba(self, x: Any) -> Any:
            found = np.asarray(self.booster_.predict(x))
            return np.stack([1 - found, found], axis=1) if found.ndim == 1 else found

        def predict(self, x: Any) -> Any:
            return self.predict_proba(x).argmax(axis=1)

    return BoosterClassifier, BoosterRegressor


def splits(estimator: Any) -> Iterator[tuple[int, float]]:
    """(feature, threshold) of every split of a number; 1e300 parts the missing from all others, and is none."""
    for node in _nodes(_dump(estimator)):
        if node.get("decision_type") == "<=" and abs(threshold := float(node["threshold"])) < LARGEST:
            yield node["split_feature"], threshold


def categories(estimator: Any) -> dict[int, list[int]]:
    """The values by which each categorical feature is split."""
    found: dict[int, set[int]] = {}
    for node in _nodes(_dump(estimator)):
        if node.get("decision_type") == "==":
            found.setdefault(node["split_feature"], set()).update(map(int, str(node["threshold"]).split("||")))
    return {feature: sorted(values) for feature, values in found.items()}


def refuse(estimator: Any) -> None:
    """Raise Unsupported for what has no form here, by name."""
    told = _dump(estimator)
    words = str(told.get("objective", "custom")).split()
    if words[0] not in PLAIN + LOG + CLASSES or "sqrt" in words:
        raise Unsupported("LightGBM: this objective has no ONNX form here", got=" ".join(words),
                          wanted=", ".join(PLAIN + LOG + CLASSES))  # fmt: skip
    if told.get("pandas_categorical"):
        raise Unsupported("LightGBM: categories of a DataFrame have no numbers that a model could be fed",
                          do="train on whole numbers, named in categorical_feature")  # fmt: skip
    for node in _nodes(told):
        if node.get("missing_type") == "Zero":
            raise Unsupported("LightGBM: 0 as a missing value has no ONNX form", wanted="zero_as_missing=False")
        if "leaf_coeff" in node:
            raise Unsupported("LightGBM: linear models in leaves have no ONNX form", wanted="linear_tree=False")


def register(estimator: Any) -> None:
    """Tell skl2onnx how to write estimators of this type."""
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import (  # type: ignore[import-untyped]
        convert_lightgbm,
    )

    from edgerun.converters import _boosting

    def write(scope: Any, operator: Any, container: Any) -> None:
        given = operator.raw_operator
        operator.raw_operator = _Asked(given)
        convert_lightgbm(scope, operator, container)
        operator.raw_operator = given

    _boosting.registered(type(estimator), write)


class _Asked:
    """What onnxmltools asks of an estimator and of its booster, told of the trees in the form that ONNX has."""

    boosting_type, is_mock = "gbdt", True  # a forest's mean is a sum of smaller leaves; `dump_model` is asked alone

    def __init__(self, estimator: Any) -> None:
        from edgerun.converters import _boosting

        self._told = _dump(estimator)
        if (classes := getattr(estimator, "classes_", None)) is not None:
            self.classes_ = _boosting.numbers_of(classes)
        words = str(self._told["objective"]).split()
        if words[0] in PLAIN:
            self._told["objective"] = "regression"
        rounds = len(self._told["tree_info"]) // max(1, self._told["num_tree_per_iteration"])
        slope = float(re.sub(r".*sigmoid:(\S+).*", r"\1", " ".join(words))) if "sigmoid:" in " ".join(words) else 1.0
        factor = slope / rounds if self._told.get("average_output") else slope
        for node in _nodes(self._told):
            _in_float32(node, factor)

    @property
    def booster_(self) -> _Asked:
        return self

    def dump_model(self) -> dict[str, Any]:
        return self._told


def _in_float32(node: dict[str, Any], factor: float) -> None:
    """One node in place: a threshold that float32 inputs meet alike, NaN's way, a leaf at its weight."""
    if "leaf_value" in node:
        node["leaf_value"] *= factor
    elif node["decision_type"] == "==":
        node["default_left"] = False  # NaN is in no set of categories
    else:
        if node["missing_type"] == "None":
            node["default_left"] = float(node["threshold"]) >= 0  # NaN is read as 0
        node["threshold"] = _below(float(node["threshold"]))


def _below(threshold: float) -> float:
    """The largest float32 that is not above `threshold`."""
    with np.errstate(over="ignore"):
        nearest = np.float32(threshold)
    return float(np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > threshold else nearest)


def _dump(estimator: Any) -> dict[str, Any]:
    booster = estimator.booster_
    found: dict[str, Any] = booster.dump_model(num_iteration=max(booster.best_iteration, 0))
    return found


def _nodes(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    stack = [tree["tree_structure"] for tree in told["tree_info"]]
    while stack:
        node = stack.pop()
        stack.extend(node[side] for side in ("left_child", "right_child") if side in node)
        yield node
