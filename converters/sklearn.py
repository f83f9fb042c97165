"""scikit-learn in: `.skops` files, pickles that are trusted, estimator objects; written by skl2onnx, judged in float64.
Boosters of XGBoost and LightGBM too, in pipelines or in their own files.

In goes one float32[batch, features], or one [batch, 1] for each column where a ColumnTransformer was fitted on a
DataFrame; categories that are text go in as text. Out come

    classifiers           label [batch], and probabilities [batch, classes] (scores, where there are no probabilities)
    regressors            variable [batch, targets]
    transformers          variable [batch, columns]
    clusters, outliers    label [batch], scores [batch, k]

`label` holds integer classes as they are; other classes are numbered, in the order of `classes_`, and their names
stand in the file's metadata as `classes` (JSON).
"""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.converters import (
    _boosting,
    _door,
    _normalize,
    _ort,
    _sklearn_draws,
    _sklearn_features,
    _sklearn_files,
    _sklearn_graph,
)
from edgerun.converters._sklearn_features import Feature
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Conversion, Feeds, Runner
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

summary = "scikit-learn: .skops, .joblib and .pkl with --trust, estimators; XGBoost .json, .ubj, LightGBM .txt"
requires: tuple[str, ...] = ("sklearn", "skl2onnx", "skops", "joblib", "onnx", "onnx_ir", "onnxruntime")
extra = "sklearn"
newest_opset = _normalize.PREFERRED_OPSET
log = logging.getLogger("edgerun")


def recognises(source: Any) -> bool:
    """A path that ends as scikit-learn's files do, or an estimator object."""
    if isinstance(source, (str, Path)):
        return Path(source).suffix.lower() in _sklearn_files.SUFFIXES or bool(_boosting.library(Path(source)))
    return any(f"{c.__module__}.{c.__qualname__}" == "sklearn.base.BaseEstimator" for c in type(source).__mro__)


def convert(source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int) -> Conversion:
    """Write a fitted estimator or pipeline as ONNX; a search (GridSearchCV …) stands for its best estimator.

    `inputs` may rename inputs and fix or name the batch. Raises EdgerunError for a pickle (`convert_trusted` reads
    it), and Unsupported naming the estimator that has no ONNX form.
    """
    return _converted(source, inputs, factory, opset, trust=False)


def convert_trusted(source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int) -> Conversion:
    """The same for a file whose code may run: a pickle, or a `.skops` file with types of its own."""
    return _converted(source, inputs, factory, opset, trust=True)


def _converted(source: Any, inputs: Sequence[TensorSpec], factory: str | None, opset: int, trust: bool) -> Conversion:
    if factory is not None:
        raise EdgerunError("a scikit-learn estimator needs no factory", got=factory, do="leave --factory out")
    estimator = _sklearn_files.load(Path(source), trust) if isinstance(source, (str, Path)) else source
    warnings.filterwarnings("ignore")  # arrays for an estimator that was fitted on a DataFrame, and the like
    estimator = getattr(estimator, "best_estimator_", estimator)
    _sklearn_graph.refuse_unfitted(estimator)
    _boosting.prepare(_sklearn_graph.parts(estimator))
    door = _Door(estimator, inputs)
    own, double = _runners(estimator, door)
    exact = double or own
    graph = _sklearn_graph.written(estimator, door.known, opset)
    feeds, data = _sklearn_draws.feeds(door.specs, door.features, exact)
    _name_doors(graph, door, exact(feeds[0]))
    if names := _sklearn_graph.class_names(estimator):
        graph.metadata_props["classes"] = json.dumps(names)
        log.info("label is the number of a class: %s", ", ".join(f"{i} {name}" for i, name in enumerate(names[:20])))
    return Conversion(Model.of(graph), own, double, feeds, data)


class _Door:
    """How feeds reach an estimator. `specs` are the model's inputs, `known` the same as the estimator names them."""

    def __init__(self, estimator: Any, wanted: Sequence[TensorSpec]) -> None:
        width = getattr(estimator, "n_features_in_", None)
        if width is None:
            raise Unsupported("the estimator does not tell its features", got=_names(estimator),
                              do="text goes in as counts: convert the part behind the vectorizer")  # fmt: skip
        told = _sklearn_features.features(estimator, width)
        columns = getattr(estimator, "feature_names_in_", None)
        by_column = any(hasattr(step, "transformers_") for step in _sklearn_features.steps(estimator))
        self.columns = by_column and columns is not None
        if by_column and columns is not None:
            kept = [(str(name), feature) for name, feature in zip(columns, told, strict=True) if feature is not None]
            self.features = [feature for _, feature in kept]
            self.known = [TensorSpec(name, feature.dtype, ("batch", 1)) for name, feature in kept]
        else:
            self.features = [feature or Feature() for feature in told]
            self.known = [TensorSpec("X", _one_dtype(self.features), ("batch", width))]
        self.specs = _door.matched(self.known, wanted)

    def table(self, feeds: Feeds, dtype: type[np.floating[Any]]) -> Any:
        """Feeds as what the estimator takes: an array, or a DataFrame; floats as `dtype`."""
        arrays = [feeds[spec.name] for spec in self.specs]
        arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
        if not self.columns:
            return arrays[0]
        import pandas  # type: ignore[import-untyped]

        return pandas.DataFrame({spec.name: a[:, 0] for spec, a in zip(self.known, arrays, strict=True)})


def _one_dtype(features: Sequence[Feature]) -> str:
    dtypes = {feature.dtype for feature in features}
    if "object" in dtypes and len(dtypes) > 1:
        raise Unsupported("an array cannot hold text beside numbers", got=", ".join(sorted(dtypes)),
                          do="fit a ColumnTransformer on a DataFrame: each column becomes an input")  # fmt: skip
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _names(estimator: Any) -> str:
    return ", ".join(type(step).__name__ for step in _sklearn_features.steps(estimator))


def _runners(estimator: Any, door: _Door) -> tuple[Runner, Runner | None]:
    """The estimator as functions of feeds, fed float32 and float64; some take one of both alone.

    Raises EdgerunError when it takes neither.
    """
    rng, refusal = np.random.default_rng(0), ""
    rows = _sklearn_draws.draw(door.specs, door.features, rng, 2)
    found: list[Runner | None] = []
    for dtype in (np.float32, np.float64):
        try:
            _answers(estimator, door.table(rows, dtype))
            found.append(functools.partial(_run, estimator, door, dtype))
        except ValueError as error:  # compiled code says so of an array's dtype
            found.append(None)
            refusal = _ort.first_line(error)
    single, double = found
    own = single or double
    if own is None:
        raise EdgerunError("the estimator refuses rows of its own features", got=refusal)
    return own, double


def _run(estimator: Any, door: _Door, dtype: type[np.floating[Any]], feeds: Feeds) -> dict[str, np.ndarray]:
    return _answers(estimator, door.table(feeds, dtype))


def _answers(estimator: Any, x: Any) -> dict[str, np.ndarray]:
    """Everything that an estimator says of rows, under the model's output names."""
    from sklearn import base  # type: ignore[import-untyped]

    if base.is_classifier(estimator):
        found = {"label": _label(estimator, estimator.predict(x))}
        if hasattr(estimator, "predict_proba"):
            found["probabilities"] = np.asarray(estimator.predict_proba(x))
        elif hasattr(estimator, "decision_function"):
            scores = np.asarray(estimator.decision_function(x))
            found["scores"] = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
        return found
    if base.is_regressor(estimator):
        return {"variable": _flat(estimator.predict(x))}
    if base.is_outlier_detector(estimator):
        return {"label": _label(estimator, estimator.predict(x)), "scores": _flat(estimator.decision_function(x))}
    if base.is_clusterer(estimator) and hasattr(estimator, "predict") and hasattr(estimator, "transform"):
        return {"label": _label(estimator, estimator.predict(x)), "scores": _flat(estimator.transform(x))}
    if hasattr(estimator, "transform"):
        found = estimator.transform(x)
        return {"variable": _flat(found.toarray() if hasattr(found, "toarray") else found)}
    raise Unsupported("the estimator neither predicts nor transforms new rows", got=_names(estimator))


def _label(estimator: Any, predicted: Any) -> np.ndarray:
    labels = np.asarray(predicted)
    if labels.ndim != 1:
        raise Unsupported("the estimator answers several questions at once", got=f"labels {list(labels.shape)}",
                          do="convert one estimator for each")  # fmt: skip
    if _sklearn_graph.class_names(estimator):
        labels = np.searchsorted(estimator.classes_, labels)
    return labels.astype(np.int64)


def _flat(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise Unsupported("the estimator's answers are no numbers", got=array.dtype.name)
    return array.reshape(len(array), -1)


def _name_doors(graph: ir.Model, door: _Door, answers: dict[str, np.ndarray]) -> None:
    """Inputs and outputs under our names, with the batch's name and every width."""
    import onnx_ir as ir

    values = [*graph.graph.initializers.values(), *(value for node in graph.graph for value in node.outputs)]
    ours = {*answers, *(spec.name for spec in door.specs)}
    for value in values:  # skl2onnx calls every transformer's result `variable`
        if value.name in ours:
            value.name = f"{value.name}_inside"
    for value, spec in zip(graph.graph.inputs, door.specs, strict=True):
        value.name, value.shape = spec.name, ir.Shape(spec.shape)
    del graph.graph.outputs[len(answers) :]  # what the estimator itself does not tell
    if len(graph.graph.outputs) != len(answers):
        raise Unsupported("skl2onnx writes other outputs", got=[value.name for value in graph.graph.outputs],
                          wanted=", ".join(answers))  # fmt: skip
    for index, (name, answer) in enumerate(answers.items()):
        value = graph.graph.outputs[index]
        if name == "label" and (value.shape is None or len(value.shape) != 1):
            value = graph.graph.outputs[index] = _sklearn_graph.flattened(graph, value)
        value.name, value.shape = name, ir.Shape([door.specs[0].shape[0], *answer.shape[1:]])
