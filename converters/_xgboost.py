"""XGBoost's boosters: reading `.json` and `.ubj` files, what their trees split on, and writing them with onnxmltools.

Thresholds and leaves are float32, and so is ONNX's comparison: `x < t` means the same on both sides.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported

requires = ("xgboost", "onnxmltools")
CLASSES = ("binary:logistic", "multi:softprob", "multi:softmax")
NUMBERS = (
    "reg:squarederror", "reg:squaredlogerror", "reg:absoluteerror", "reg:pseudohubererror", "reg:quantileerror",
    "count:poisson", "reg:gamma", "reg:tweedie",
)  # fmt: skip


def load(path: Path) -> Any:
    """The estimator whose booster a file holds; the file is data, and runs nothing."""
    import xgboost

    try:
        booster = xgboost.Booster(model_file=str(path))
        objective = _learner(booster)["objective"]["name"]
        estimator = xgboost.XGBClassifier() if objective.startswith(("binary:", "multi:")) else xgboost.XGBRegressor()
        estimator.load_model(str(path))
    except Exception as error:  # XGBoostError with its C++ trace, KeyError, ValueError …
        raise EdgerunError(
            "XGBoost cannot read the file", got=first_line(error), do="save it again with Booster.save_model"
        ) from error
    return estimator


def splits(estimator: Any) -> Iterator[tuple[int, float]]:
    """(feature, threshold) of every split."""
    for tree in _trees(estimator):
        for node in _nodes(tree):
            if "children" in node:
                yield int(str(node["split"]).removeprefix("f")), float(node["split_condition"])


def categories(estimator: Any) -> dict[int, list[int]]:
    """Nothing: categorical splits are refused."""
    return {}


def refuse(estimator: Any) -> None:
    """Raise Unsupported for what has no form here, by name."""
    booster = estimator.get_booster()
    learner = _learner(booster)
    objective, kind = learner["objective"]["name"], learner["gradient_booster"]["name"]
    wrong: list[tuple[str, object, str]] = []
    if kind not in ("gbtree", "dart"):
        wrong.append(("booster", kind, "gbtree or dart"))
    if objective not in CLASSES + NUMBERS:
        wrong.append(("objective", objective, ", ".join(CLASSES + NUMBERS)))
    if "c" in (booster.feature_types or ()):
        wrong.append(("kind of split", "categorical", "numbers: encode categories first (OneHotEncoder …)"))
    if (missing := getattr(estimator, "missing", math.nan)) is not None and not math.isnan(missing):
        wrong.append(("missing value", missing, "NaN"))
    if (targets := learner["learner_model_param"].get("num_target", "1")) != "1":
        wrong.append(("number of targets", targets, "1: train one booster for each"))
    for what, got, wanted in wrong:
        raise Unsupported(f"XGBoost: this {what} has no ONNX form here", got=got, wanted=wanted)


def register(estimator: Any) -> None:
    """Tell skl2onnx how to write estimators of this type."""
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost  # type: ignore[import-untyped]

    from edgerun.converters import _boosting

    def write(scope: Any, operator: Any, container: Any) -> None:
        given = operator.raw_operator
        operator.raw_operator = _Asked(given)
        convert_xgboost(scope, operator, container)
        operator.raw_operator = given

    _boosting.registered(type(estimator), write)


class _Asked:
    """What onnxmltools asks of an estimator, told of the trees that it predicts with: up to its best iteration, without
    names of features, and those of DART at their weights."""

    missing, kwargs = math.nan, ()

    def __init__(self, estimator: Any) -> None:
        from edgerun.converters import _boosting

        self._trees, self._config = _trees(estimator), _config(estimator)
        learner = self._config["learner"]
        self._objective = learner["objective"]["name"]
        by_class = max(1, int(learner["learner_model_param"]["num_class"]))
        self.n_estimators = len(self._trees) // by_class
        self.operator_name = "XGBClassifier" if self._objective in CLASSES else "XGBRegressor"
        if self.operator_name == "XGBClassifier":
            self.classes_ = _boosting.numbers_of(estimator.classes_)
        if self._objective == "multi:softmax":  # the sklearn estimator gives probabilities all the same
            self._objective = "multi:softprob"

    def get_xgb_params(self) -> dict[str, Any]:
        return {"objective": self._objective, "n_estimators": self.n_estimators}

    def get_booster(self) -> _Asked:
        return self

    def save_config(self) -> str:
        return json.dumps(self._config)

    def get_dump(self, **options: Any) -> list[str]:
        return [json.dumps(tree) for tree in self._trees]


def _sliced(estimator: Any) -> Any:
    """The booster that the estimator predicts with: early stopping keeps the rounds after the best one."""
    booster = estimator.get_booster()
    best = booster.attributes().get("best_iteration")
    booster = booster[: int(best) + 1] if best is not None else booster.copy()
    booster.feature_names = None
    return booster


def _trees(estimator: Any) -> list[dict[str, Any]]:
    booster = _sliced(estimator)
    trees = [json.loads(text) for text in booster.get_dump(dump_format="json", with_stats=True)]
    saved = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]
    if "weight_drop" in saved:
        for tree, weight in zip(trees, saved["weight_drop"], strict=True):
            for node in _nodes(tree):
                if "leaf" in node:
                    node["leaf"] *= weight
    # Forests (XGBRFClassifier) have several trees in a row for one class; onnxmltools takes classes by turns.
    model = saved.get("gbtree", saved)["model"]
    order: dict[int, list[dict[str, Any]]] = {}
    for tree, group in zip(trees, model["tree_info"], strict=True):
        order.setdefault(group, []).append(tree)
    return [tree for turn in zip(*(order[group] for group in sorted(order)), strict=True) for tree in turn]


def _config(estimator: Any) -> dict[str, Any]:
    """The booster's configuration with DART's trees where those of gbtree stand."""
    config: dict[str, Any] = copy.deepcopy(json.loads(_sliced(estimator).save_config()))
    boosting = config["learner"]["gradient_booster"]
    config["learner"]["gradient_booster"] = boosting.get("gbtree", boosting)
    return config


def _learner(booster: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(booster.save_config())["learner"]
    return found


def _nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        stack.extend(node.get("children", ()))
        yield node
