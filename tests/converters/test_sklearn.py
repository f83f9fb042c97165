"""scikit-learn: estimators on scikit-learn's own data, their files, and what must be refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

for _needed in ("sklearn", "skl2onnx", "skops", "onnx"):
    pytest.importorskip(_needed)
from sklearn import datasets  # type: ignore[import-untyped]  # noqa: E402
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin  # type: ignore[import-untyped]  # noqa: E402
from sklearn.cluster import KMeans  # type: ignore[import-untyped]  # noqa: E402
from sklearn.decomposition import PCA  # type: ignore[import-untyped]  # noqa: E402
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # type: ignore[import-untyped]  # noqa: E402
from sklearn.ensemble import (  # type: ignore[import-untyped]  # noqa: E402
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)  # fmt: skip
from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression  # type: ignore[import-untyped]  # noqa: E402
from sklearn.model_selection import GridSearchCV, train_test_split  # type: ignore[import-untyped]  # noqa: E402
from sklearn.naive_bayes import GaussianNB, MultinomialNB  # type: ignore[import-untyped]  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor  # type: ignore[import-untyped]  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # type: ignore[import-untyped]  # noqa: E402
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]  # noqa: E402
from sklearn.preprocessing import OneHotEncoder, StandardScaler  # type: ignore[import-untyped]  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # type: ignore[import-untyped]  # noqa: E402

import edgerun  # noqa: E402
from edgerun import parity, registry  # noqa: E402
from edgerun.errors import EdgerunError, GateFailed, Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.parity import Parity  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def _data(name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return x.astype(np.float32), y


def _outputs(model: Model, x: np.ndarray, name: str = "X") -> dict[str, np.ndarray]:
    with registry.target("onnxruntime").load(
        edgerun.runtime.Engine("onnxruntime", model.to_bytes()), edgerun.Options(threads=1)
    ) as session:
        return session.run({name: x})


SVM: dict[str, Any] = {"probability": True, "random_state": 0}
CLASSIFIERS: list[Any] = [
    LogisticRegression(max_iter=500), make_pipeline(StandardScaler(), SVC(**SVM)),
    RandomForestClassifier(n_estimators=20, random_state=0),
    GradientBoostingClassifier(n_estimators=10, random_state=0),
    HistGradientBoostingClassifier(max_iter=10), make_pipeline(StandardScaler(), MLPClassifier((16,), random_state=0)),
    KNeighborsClassifier(), make_pipeline(StandardScaler(), PCA(4), LogisticRegression()), GaussianNB(),
]  # fmt: skip


@pytest.mark.parametrize("data", ["digits", "breast_cancer", "iris", "wine"])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(getattr(e, "steps", [(0, e)])[-1][1]).__name__)
def test_classifiers_agree_on_held_out_data(estimator: Any, data: str) -> None:
    """Labels are the estimator's own wherever it does not tie, and probabilities differ by at most 2e-5."""
    if data == "digits" and isinstance(estimator, (GaussianNB, GradientBoostingClassifier)):
        pytest.skip("slow, or pixels that never change: variances of 1e-9 have no float32")
    x, y = _data(data)
    fit, test, labels, _ = map(np.asarray, train_test_split(x, y, random_state=0))
    estimator.fit(fit, labels)
    model = edgerun.convert(estimator)
    classes = len(set(labels))
    assert [str(spec) for spec in model.inputs] == [f"X:float32[batch,{x.shape[1]}]"]
    assert [str(s) for s in model.outputs] == ["label:int64[batch]", f"probabilities:float32[batch,{classes}]"]
    found, wanted = _outputs(model, test), estimator.predict_proba(test.astype(np.float64))
    off = np.abs(found["probabilities"] - wanted).max(axis=1) > 2e-5
    neighbours = isinstance(estimator, KNeighborsClassifier)  # whole pixels: at equal distances any one is nearest
    assert off.mean() <= (0.01 if neighbours and data == "digits" else 0)
    second, first = np.sort(wanted, axis=1)[:, -2:].T
    decided = (first - second > 1e-5) & ~off
    assert decided.mean() > 0.8  # five neighbours tie most often
    np.testing.assert_array_equal(found["label"][decided], estimator.predict(test)[decided])
    assert {o.name: o.bound for o in Parity.of(model).outputs} == {"label": 0, "probabilities": parity.FLOOR}


@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(), RandomForestRegressor(n_estimators=10, random_state=0), KNeighborsRegressor(),
        HistGradientBoostingRegressor(max_iter=10),
        make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(16,), max_iter=50, random_state=0)),
        make_pipeline(StandardScaler(), KNeighborsRegressor()),
    ],
    ids=str,
)  # fmt: skip
def test_regressors(estimator: Any) -> None:
    x, y = _data("diabetes")
    model = edgerun.convert(estimator.fit(x, y))
    assert [str(spec) for spec in model.outputs] == ["variable:float32[batch,1]"]
    wanted = estimator.predict(x.astype(np.float64))
    np.testing.assert_allclose(_outputs(model, x)["variable"][:, 0], wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("estimator", [PCA(5), StandardScaler(), make_pipeline(StandardScaler(), PCA(3))], ids=str)
def test_transformers(estimator: Any) -> None:
    x, _ = _data("wine")
    wanted = estimator.fit_transform(x.astype(np.float64))
    model = edgerun.convert(estimator)
    found = _outputs(model, x)["variable"]
    assert model.outputs[0].shape == ("batch", wanted.shape[1])
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_scores_where_there_are_no_probabilities() -> None:
    x, y = _data("breast_cancer")
    estimator = make_pipeline(StandardScaler(), LinearSVC()).fit(x, y)
    found = _outputs(edgerun.convert(estimator), x)
    scores = estimator.decision_function(x.astype(np.float64))
    np.testing.assert_allclose(found["scores"], np.stack([-scores, scores], 1), atol=1e-5 * np.abs(scores).max())


def test_clusters_and_outliers_have_a_label_for_each_row() -> None:
    x, _ = _data("wine")
    for estimator in (make_pipeline(StandardScaler(), KMeans(3, random_state=0)), IsolationForest(n_estimators=5)):
        model = edgerun.convert(estimator.fit(x))
        assert [spec.name for spec in model.outputs] == ["label", "scores"]
        assert model.outputs[0].shape == ("batch",) and _outputs(model, x)["label"].shape == (len(x),)


@pytest.mark.parametrize(
    "estimator", CLASSIFIERS[:7], ids=lambda e: type(getattr(e, "steps", [(0, e)])[-1][1]).__name__
)
def test_classes_with_names_are_numbered(estimator: Any) -> None:
    x, y = _data("iris")
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    estimator.fit(x, names)
    model = edgerun.convert(estimator)
    found = _outputs(model, x)["label"]
    classes = json.loads(model.ir.metadata_props["classes"])
    assert classes == ["setosa", "versicolor", "virginica"] and found.dtype == np.int64
    agreement = np.array(classes)[found] == estimator.predict(x)
    assert agreement.mean() >= 0.98  # neighbours and forests tie
    assert list(estimator.classes_) == classes, "the source was changed"


def test_a_search_stands_for_its_best_estimator() -> None:
    x, y = _data("iris")
    search = GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.1, 1]}, cv=2).fit(x, y)
    assert edgerun.convert(search).outputs[0].name == "label"


def test_text_beside_numbers_needs_columns() -> None:
    with pytest.raises(Unsupported, match="text beside numbers"):
        edgerun.convert(OneHotEncoder().fit(np.array([["Rome", 2], ["Oslo", 3]], object)))
    with pytest.raises(Unsupported, match="TfidfVectorizer"):
        edgerun.convert(make_pipeline(TfidfVectorizer(), MultinomialNB()).fit(["a text", "one more"], [0, 1]))


def test_the_user_names_the_input_and_fixes_the_batch() -> None:
    x, y = _data("wine")
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    model = edgerun.convert(estimator, inputs=["rows:float32[8,13]"])
    assert [str(spec) for spec in (*model.inputs, *model.outputs)] == [
        "rows:float32[8,13]", "label:int64[8]", "probabilities:float32[8,3]",
    ]  # fmt: skip
    with pytest.raises(EdgerunError, match="other inputs"):
        edgerun.convert(estimator, inputs=["rows:float32[8,12]"])


def test_draws_reach_what_trees_have_learnt() -> None:
    """Random rows from N(0, 1) all end in the same leaf of a tree on wine; the rows drawn meet every class."""
    x, y = _data("wine")
    estimator = RandomForestClassifier(n_estimators=10, random_state=0).fit(x, y)
    found = registry.converter("sklearn").convert(estimator, inputs=(), factory=None, opset=21)
    labels = np.concatenate([found.run(feeds)["label"] for feeds in found.feeds])
    assert sorted(set(labels)) == [0, 1, 2] and len(labels) == 131
    assert "where the estimator's training data lay" in found.data


def test_a_wrong_graph_is_found() -> None:
    """skl2onnx writes two-class linear discriminant analysis as something else: nothing comes of it."""
    x, y = _data("breast_cancer")
    with pytest.raises(GateFailed, match="probabilities"):
        edgerun.convert(make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()).fit(x, y))


def test_one_label_of_many_that_is_wrong_fails() -> None:
    x, y = _data("iris")
    found = registry.converter("sklearn").convert(LogisticRegression().fit(x, y), inputs=(), factory=None, opset=21)

    def off_by_one(feeds: Any) -> dict[str, np.ndarray]:
        results = found.run(feeds)
        results["label"] = results["label"].copy()
        results["label"][-1] = (results["label"][-1] + 1) % 3
        return results

    judged = parity.check(found.model, off_by_one, found.run, found.run64, feeds=found.feeds, data=found.data)
    assert [o.passed for o in judged.outputs] == [False, True]


class Doubled(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator of somebody's own."""

    def fit(self, x: Any, y: Any = None) -> Doubled:
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x: Any) -> Any:
        return 2 * x


class Guess(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The same with classes."""

    def fit(self, x: Any, y: Any) -> Guess:
        self.classes_, self.n_features_in_ = np.unique(y), x.shape[1]
        return self

    def predict(self, x: Any) -> Any:
        return np.repeat(self.classes_[:1], len(x))


def test_estimators_that_have_no_onnx_form_are_named() -> None:
    x, y = _data("iris")
    with pytest.raises(Unsupported, match="Doubled"):
        edgerun.convert(make_pipeline(StandardScaler(), Doubled()).fit(x))
    with pytest.raises(Unsupported, match="Guess"):
        edgerun.convert(Guess().fit(x, y))
    with pytest.raises(EdgerunError, match="not fitted"):
        edgerun.convert(make_pipeline(StandardScaler(), LogisticRegression()))
    with pytest.raises(EdgerunError, match="needs no factory"):
        edgerun.convert(LogisticRegression().fit(x, y), factory="a:b")
    with pytest.raises(EdgerunError, match="needs no trust"):
        edgerun.convert(LogisticRegression().fit(x, y), trust=True)
