"""What a fitted scikit-learn estimator tells of its features: dtypes, where its training data lay, which values it met.

Random feeds from N(0, 1) would reach one leaf of most trees: they are drawn around what was learnt instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgerun.converters import _boosting
from edgerun.errors import Unsupported

MISSING = 0.1  # the share of a feature's values that is NaN, where NaN was learnt from


@dataclass(frozen=True)
class Feature:
    """One feature: its `dtype` (float32, int64, object for text); mean and spread, or the `values` it may have; is NaN
    a value that was learnt from (`missing`)?"""

    dtype: str = "float32"
    mean: float = 0.0
    spread: float = 1.0
    values: tuple[Any, ...] = ()
    missing: bool = False

    def draw(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Random values [rows]: uniform among `values`, else N(mean, spread²); one in ten is missing where some may."""
        if self.values:
            drawn = np.array(self.values, self.dtype)[rng.integers(0, len(self.values), rows)]
        else:
            drawn = (self.mean + self.spread * rng.standard_normal(rows)).astype(self.dtype)
        if self.missing:
            drawn[rng.random(rows) < MISSING] = np.nan
        return drawn


def steps(estimator: Any) -> list[Any]:
    """The steps of a pipeline that do something, nested pipelines opened; of another estimator itself."""
    if not hasattr(estimator, "steps"):
        return [] if estimator is None or estimator == "passthrough" else [estimator]
    return [inner for _, step in estimator.steps for inner in steps(step)]


def features(estimator: Any, width: int) -> list[Feature | None]:
    """A Feature for each of `width` features, None where the estimator drops it.

    Raises Unsupported where a column is text to one transformer and a number to another.
    """
    for step in steps(estimator):
        if hasattr(step, "transformers_"):
            return _by_column(step, width)
        if hasattr(step, "categories_"):
            unknown = getattr(step, "handle_unknown", "error") != "error"
            return [_category(values, unknown) for values in step.categories_]
        if type(step).__name__ == "SimpleImputer":
            if step.statistics_.dtype.kind in "OU":
                values = [tuple({str(value), "?"}) for value in step.statistics_]
                later = [s for s in steps(estimator) if hasattr(s, "categories_")]
                return list(features(later[0], width)) if later else [Feature("object", values=v) for v in values]
            continue  # the step behind it knows more
        return _boosted(step, list(_numbers(step, width)))
    return [Feature()] * width


def _boosted(step: Any, numbers: list[Feature]) -> list[Feature | None]:
    """The features of a booster: values may be missing, and categories are those that it splits on and one more."""
    if _boosting.owner(step) is None:
        return [*numbers]
    known = _boosting.categories(step)
    return [
        Feature(values=(*map(float, known[i]), max(known[i]) + 1.0), missing=True) if i in known
        else replace(feature, missing=True)
        for i, feature in enumerate(numbers)
    ]  # fmt: skip


def _by_column(transformer: Any, width: int) -> list[Feature | None]:
    found: list[Feature | None] = [None] * width
    for name, inner, _ in transformer.transformers_:
        where = transformer._transformer_to_input_indices[name]
        if isinstance(inner, str) and inner == "drop":
            continue
        for index, feature in zip(where, features(inner, len(where)), strict=True):
            before = found[index]
            if before is not None and feature is not None and before.dtype != feature.dtype:
                raise Unsupported("a column has two dtypes", got=f"column {index}: {before.dtype} and {feature.dtype}",
                                  do="give each transformer columns of its own")  # fmt: skip
            found[index] = before or feature
    return found


def _category(values: np.ndarray, unknown: bool) -> Feature:
    """The categories that were learnt, and one more where the encoder takes others as well."""
    known = [value for value in values.tolist() if value is not None and value == value]
    values = np.array(known)  # a column of a mixed array is of objects, whatever they are
    if values.dtype.kind == "U":
        return Feature("object", values=(*map(str, known), *(["unknown"] if unknown else [])))
    more = [max(known) + 1] if unknown and known else []
    return Feature("int64" if values.dtype.kind in "iu" else "float32", values=(*known, *more))


def _numbers(step: Any, width: int) -> Iterator[Feature]:
    mean, spread = np.zeros(width), np.ones(width)
    for told in (_moments, _rows, _thresholds):
        found = told(step, width)
        if found is not None:
            mean, spread = found
            break
    spread = np.where(np.isfinite(spread) & (spread > 0), spread, 1.0)
    return (Feature(mean=float(m), spread=float(s)) for m, s in zip(mean, spread, strict=True))


Moments = tuple[np.ndarray, np.ndarray]


def _moments(step: Any, width: int) -> Moments | None:
    """Mean and standard deviation as scalers, PCA and naive Bayes keep them."""
    if getattr(step, "components_", None) is not None and getattr(step, "mean_", None) is not None:
        return step.mean_, np.sqrt(step.explained_variance_ @ step.components_**2)
    for centre, scale in (("mean_", "scale_"), ("center_", "scale_")):
        if getattr(step, centre, None) is not None:
            ones = np.ones(width)
            return getattr(step, centre), ones if getattr(step, scale, None) is None else getattr(step, scale)
    if hasattr(step, "data_min_"):
        return (step.data_min_ + step.data_max_) / 2, (step.data_max_ - step.data_min_) / 4
    if hasattr(step, "theta_") and hasattr(step, "var_"):
        within, between = step.var_.mean(axis=0), step.theta_.var(axis=0)
        return step.theta_.mean(axis=0), np.sqrt(within + between)
    if hasattr(
        step, "feature_log_prob_"
    ):  # naive Bayes on counts: rows of about ten words, Poisson's mean and variance
        expected = 10 * np.exp(step.feature_log_prob_).mean(axis=0)
        return expected, np.sqrt(expected)
    if hasattr(step, "classes_") and isinstance(getattr(step, "coef_", None), np.ndarray):
        # A linear classifier knows no scale of its data; its scores, N(0, 3²) at most, decide where they are small.
        longest = np.linalg.norm(step.coef_, axis=-1).max()
        return np.zeros(width), np.full(width, min(1.0, 3 / longest) if longest else 1.0)
    return None


def _rows(step: Any, width: int) -> Moments | None:
    """Of the training rows that an estimator keeps: neighbours, support vectors, cluster centres."""
    for name in ("_fit_X", "support_vectors_", "cluster_centers_"):
        rows: Any = getattr(step, name, None)
        rows = rows.toarray() if hasattr(rows, "toarray") else rows
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and len(rows) and rows.shape[1] == width:
            return rows.mean(axis=0), rows.std(axis=0)
    return None


def _thresholds(step: Any, width: int) -> Moments | None:
    """Of the thresholds that trees compare each feature with."""
    by_feature: list[list[float]] = [[] for _ in range(width)]
    for index, threshold in _splits(step):
        by_feature[index].append(threshold)
    if not any(by_feature):
        return None
    # Fewer than two thresholds have no spread: their own size is the best guess.
    mean = np.array([np.mean(found) if found else 0.0 for found in by_feature])
    spread = np.array([np.std(found) if len(set(found)) > 1 else max(abs(m), 1e-3)
                       for found, m in zip(by_feature, mean, strict=True)])  # fmt: skip
    return mean, spread


def _splits(step: Any) -> Iterator[tuple[int, float]]:
    yield from _boosting.splits(step)
    if hasattr(step, "tree_"):
        inner = step.tree_.feature >= 0
        yield from zip(step.tree_.feature[inner].tolist(), step.tree_.threshold[inner].tolist(), strict=True)
    for predictor in _flat(getattr(step, "_predictors", [])):  # histogram gradient boosting
        nodes = predictor.nodes[predictor.nodes["is_leaf"] == 0]
        yield from zip(nodes["feature_idx"].tolist(), nodes["num_threshold"].tolist(), strict=True)
    if not hasattr(step, "estimators_features_"):  # bagging numbers the features of each member anew
        for member in _flat(getattr(step, "estimators_", [])):
            for inner in steps(member)[:1]:
                yield from _splits(inner)


def _flat(members: Any) -> Sequence[Any]:
    return [m for member in members for m in (member if isinstance(member, (list, np.ndarray)) else [member])]
