"""XGBoost and LightGBM: boosters trained here, in pipelines and in their own files, and what must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _needed in ("xgboost", "lightgbm", "onnxmltools", "skl2onnx", "skops"):
    pytest.importorskip(_needed)
import joblib  # type: ignore[import-untyped]  # noqa: E402
import lightgbm as lgb  # noqa: E402
import xgboost as xgb  # noqa: E402
from sklearn import datasets  # type: ignore[import-untyped]  # noqa: E402
from sklearn.base import clone  # type: ignore[import-untyped]  # noqa: E402
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]  # noqa: E402
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]  # noqa: E402
from skops import io as skops  # type: ignore[import-untyped]  # noqa: E402

import edgerun  # noqa: E402
from edgerun import registry  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.parity import Parity  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
X: dict[str, Any] = {"n_estimators": 20, "max_depth": 4, "n_jobs": 1}
L: dict[str, Any] = {"n_estimators": 20, "verbose": -1, "n_jobs": 1}


def data(name: str, missing: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's own data with 1 % of noise, so that no row of another seed lies on a threshold; a share is NaN."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    rng = np.random.default_rng(seed)
    x = (x + 0.01 * x.std(axis=0) * rng.standard_normal(x.shape)).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    return x, y


def outputs(model: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    engine = edgerun.runtime.Engine("onnxruntime", model.to_bytes())
    with registry.target("onnxruntime").load(engine, edgerun.Options(threads=1)) as session:
        return session.run({"X": x})


def agree(model: Model, estimator: Any, x: np.ndarray) -> None:
    """Every label, and probabilities within 2e-6."""
    found, wanted = outputs(model, x), estimator.predict_proba(x)
    assert np.abs(found["probabilities"] - wanted).max() < 2e-6
    np.testing.assert_array_equal(found["label"], wanted.argmax(axis=1))
    assert Parity.of(model).passed


STOPPED: dict[str, Any] = {"early_stopping_rounds": 2, "learning_rate": 1.0}
FOREST: dict[str, Any] = {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.7}
CLASSIFIERS: list[Any] = [
    xgb.XGBClassifier(**X), xgb.XGBClassifier(base_score=0.9, **X),
    xgb.XGBClassifier(booster="dart", rate_drop=0.3, **X), xgb.XGBRFClassifier(**X),
    lgb.LGBMClassifier(**L), lgb.LGBMClassifier(boosting_type="dart", **L), lgb.LGBMClassifier(**FOREST, **L),
    lgb.LGBMClassifier(use_missing=False, **L), make_pipeline(StandardScaler(), xgb.XGBClassifier(**X)),
    make_pipeline(StandardScaler(), lgb.LGBMClassifier(**L)),
]  # fmt: skip


@pytest.mark.parametrize("name", ["iris", "breast_cancer"])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(getattr(e, "steps", [(0, e)])[-1][1]).__name__)
def test_classifiers_agree_with_missing_values_too(estimator: Any, name: str) -> None:
    (x, y), estimator = data(name, missing=0.1), clone(estimator)
    model = edgerun.convert(estimator.fit(x, y))
    assert [s.name for s in model.outputs] == ["label", "probabilities"]
    agree(model, estimator, data(name, missing=0.1, seed=1)[0])


@pytest.mark.parametrize(
    "estimator",
    [
        *(xgb.XGBRegressor(objective=f"reg:{o}", **X) for o in ("squarederror", "absoluteerror", "gamma", "tweedie")),
        xgb.XGBRegressor(base_score=17.0, **X), xgb.XGBRegressor(booster="dart", rate_drop=0.3, **X),
        *(lgb.LGBMRegressor(objective=o, **L) for o in ("regression", "fair", "mape", "poisson")),
        lgb.LGBMRegressor(**FOREST, **L),
    ],
    ids=lambda e: f"{type(e).__name__}-{e.objective}",
)  # fmt: skip
def test_regressors_agree(estimator: Any) -> None:
    x, y = data("diabetes", missing=0.1)
    model, wanted = edgerun.convert(estimator.fit(x, y)), estimator.predict(x)
    assert [str(spec) for spec in model.outputs] == ["variable:float32[batch,1]"]
    assert np.abs(outputs(model, x)["variable"][:, 0] - wanted).max() < 3e-6 * np.abs(wanted).max()


def test_early_stopping_ends_at_the_best_round() -> None:
    x, y = data("breast_cancer")
    held: Any = [(x[1::2], y[1::2])]
    first = xgb.XGBClassifier(**STOPPED, **X).fit(x[::2], y[::2], eval_set=held, verbose=False)
    assert first.best_iteration + 1 < first.get_booster().num_boosted_rounds()
    agree(edgerun.convert(first), first, x)
    stop = lgb.early_stopping(2, verbose=False)
    second = lgb.LGBMClassifier(learning_rate=1.0, **L).fit(x[::2], y[::2], eval_set=held, callbacks=[stop])
    assert 0 < second.best_iteration_ < 20
    agree(edgerun.convert(second), second, x)


def test_float32_inputs_on_a_float64_threshold_go_the_same_way() -> None:
    """The nearest float32 may lie above the threshold: both it and its neighbours must find their leaf."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (400, 1))
    booster = lgb.LGBMRegressor(num_leaves=63, min_child_samples=2, **L).fit(x, np.sin(40 * x[:, 0]))
    from edgerun.converters import _lightgbm

    thresholds = np.array([t for _, t in _lightgbm.splits(booster)])
    nearest = thresholds.astype(np.float32)
    assert (nearest > thresholds).mean() > 0.3
    ends = [np.nextafter(nearest, np.float32(way)) for way in (-np.inf, np.inf)]
    rows = np.concatenate([nearest, *ends])[:, None]
    found, wanted = outputs(edgerun.convert(booster), rows)["variable"][:, 0], booster.predict(rows)
    assert np.abs(found - wanted).max() < 1e-6


def test_categories_are_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 12, (500, 2)), rng.standard_normal((500, 2))], axis=1).astype(np.float32)
    y = np.isin(x[:, 0], [1, 4, 7]) ^ (x[:, 2] > 0)
    x[rng.random(x.shape) < 0.05] = np.nan
    estimator = lgb.LGBMClassifier(min_data_per_group=5, cat_smooth=1, **L)
    estimator.fit(x, y.astype(int), categorical_feature=[0, 1])
    from edgerun.converters import _lightgbm

    assert 0 in _lightgbm.categories(estimator)
    x[:20, 0] = 99  # never seen
    agree(edgerun.convert(estimator), estimator, x)


def test_classes_with_names_are_numbered() -> None:
    x, y = data("iris")
    names = np.array(["setosa", "versicolor", "virginica"])
    estimator = lgb.LGBMClassifier(**L).fit(x, names[y])
    model = edgerun.convert(estimator)
    assert json.loads(model.ir.metadata_props["classes"]) == names.tolist()
    assert (names[outputs(model, x)["label"]] == estimator.predict(x)).all()


@pytest.mark.parametrize(("ending", "name"), [("json", "iris"), ("ubj", "breast_cancer"), ("txt", "iris")])
def test_their_own_files_are_data_and_need_no_trust(tmp_path: Path, ending: str, name: str) -> None:
    x, y = data(name, missing=0.1)
    path = tmp_path / f"model.{ending}"
    estimator: Any
    if ending == "txt":
        estimator = lgb.LGBMClassifier(**L).fit(x, y)
        estimator.booster_.save_model(path)
    else:
        estimator = xgb.XGBClassifier(**X).fit(x, y)
        estimator.save_model(path)
    model = edgerun.convert(path)
    agree(model, estimator, x)
    assert model.history[-1].options["source"] == path.name


def test_boosters_that_were_trained_without_estimators(tmp_path: Path) -> None:
    x, y = data("iris", missing=0.1)
    softmax = xgb.train({"objective": "multi:softmax", "num_class": 3, "nthread": 1}, xgb.DMatrix(x, y), 10)
    softmax.save_model(tmp_path / "softmax.json")
    found = outputs(edgerun.convert(tmp_path / "softmax.json"), x)
    np.testing.assert_array_equal(found["label"], softmax.predict(xgb.DMatrix(x)).astype(int))
    x, y = data("diabetes", missing=0.1)
    trees = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(x, y), 10)
    trees.save_model(tmp_path / "trees.txt")
    found = outputs(edgerun.convert(tmp_path / "trees.txt"), x)
    assert np.abs(found["variable"][:, 0] - np.asarray(trees.predict(x))).max() < 1e-3


def test_columns_of_a_dataframe_are_one_input() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = data("iris")
    table = pandas.DataFrame(x, columns=["sepal length", "sepal width", "petal length", "petal width"])
    for estimator in (xgb.XGBClassifier(**X), lgb.LGBMClassifier(**L)):
        model = edgerun.convert(estimator.fit(table, y))
        assert [str(spec) for spec in model.inputs] == ["X:float32[batch,4]"]
        agree(model, estimator, x)


def test_what_has_no_form_is_named() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = data("diabetes")
    table = pandas.DataFrame({"a": pandas.Categorical(np.arange(len(x)) % 5), "b": x[:, 0]})
    cases: list[tuple[Any, str]] = [
        (xgb.XGBRegressor(booster="gblinear").fit(x, y), "gblinear"),
        (xgb.XGBRegressor(objective="reg:logistic", **X).fit(x, y / y.max()), "reg:logistic"),
        (xgb.XGBRegressor(missing=0.0, **X).fit(x, y), "missing value"),
        (xgb.XGBRegressor(**X).fit(x, np.stack([y, -y], axis=1)), "number of targets"),
        (xgb.XGBRegressor(enable_categorical=True, **X).fit(table, y), "categorical"),
        (lgb.LGBMRegressor(**L).fit(table, y), "categories of a DataFrame"),
        (lgb.LGBMRegressor(objective="cross_entropy", **L).fit(x, y / y.max()), "cross_entropy"),
        (lgb.LGBMRegressor(reg_sqrt=True, **L).fit(x, y), "regression sqrt"),
        (lgb.LGBMRegressor(linear_tree=True, **L).fit(x, y), "linear models in leaves"),
        (lgb.LGBMRegressor(zero_as_missing=True, **L).fit(x, y), "0 as a missing value"),
        (lgb.LGBMClassifier(objective="multiclassova", **L).fit(x, (y > 100).astype(int) + (y > 200)), "multiclassova"),
    ]  # fmt: skip
    for estimator, message in cases:
        with pytest.raises(Unsupported, match=message):
            edgerun.convert(estimator)
    with pytest.raises(EdgerunError, match="not fitted"):
        edgerun.convert(xgb.XGBClassifier())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    x, y = data("iris")
    xgb.XGBClassifier(**X).fit(x, y).save_model(tmp_path / "good.json")
    xgb.XGBClassifier(**X).fit(x, y).save_model(tmp_path / "good.ubj")
    lgb.LGBMClassifier(**L).fit(x, y).booster_.save_model(tmp_path / "good.txt")
    for ending in ("json", "ubj", "txt"):
        whole, half = (tmp_path / f"good.{ending}").read_bytes(), tmp_path / f"half.{ending}"
        half.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(EdgerunError) as caught:
            edgerun.convert(half)
        assert not isinstance(caught.value, Unsupported)
    other = tmp_path / "other.json"
    other.write_text('{"model": 1}')
    with pytest.raises(EdgerunError, match="no converter recognises"):
        edgerun.convert(other)


def test_pickles_need_trust_and_skops_files_name_the_types(tmp_path: Path) -> None:
    x, y = data("iris")
    estimator = make_pipeline(StandardScaler(), xgb.XGBClassifier(**X)).fit(x, y)
    joblib.dump(estimator, tmp_path / "model.joblib")
    skops.dump(estimator, tmp_path / "model.skops")
    with pytest.raises(EdgerunError, match="a pickle is a program"):
        edgerun.convert(tmp_path / "model.joblib")
    with pytest.raises(EdgerunError, match=r"types that are not scikit-learn's[\s\S]*xgboost"):
        edgerun.convert(tmp_path / "model.skops")
    for name in ("model.joblib", "model.skops"):
        agree(edgerun.convert(tmp_path / name, trust=True), estimator, data("iris", seed=1)[0])
