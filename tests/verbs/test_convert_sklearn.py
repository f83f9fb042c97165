"""`edgerun convert` of scikit-learn files: what is data, what is a program, and what is damaged; and what follows."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

for _needed in ("sklearn", "skl2onnx", "skops", "onnx"):
    pytest.importorskip(_needed)
import sklearn  # type: ignore[import-untyped]  # noqa: E402
from sklearn import datasets  # noqa: E402
from sklearn.base import BaseEstimator, TransformerMixin  # type: ignore[import-untyped]  # noqa: E402
from sklearn.compose import ColumnTransformer  # type: ignore[import-untyped]  # noqa: E402
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # noqa: E402
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]  # noqa: E402
from sklearn.neural_network import MLPClassifier  # type: ignore[import-untyped]  # noqa: E402
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]  # noqa: E402
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler  # type: ignore[import-untyped]  # noqa: E402
from skops import io as skops  # type: ignore[import-untyped]  # noqa: E402

import edgerun  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.parity import Parity  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Ran(Protocol):
    """What the `cli` fixture returns."""

    code: int
    out: str
    err: str


class Doubled(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator of somebody's own."""

    def fit(self, x: Any, y: Any = None) -> Doubled:
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x: Any) -> Any:
        return 2 * x


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of every kind: good, hostile, damaged, of other versions."""
    monkeypatch.chdir(tmp_path)
    x, y = datasets.load_iris(return_X_y=True)
    estimator = make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=20, random_state=0)).fit(x, y)
    skops.dump(estimator, "good.skops")
    skops.dump(make_pipeline(StandardScaler(), Doubled()).fit(x), "custom.skops")
    Path("half.skops").write_bytes(Path("good.skops").read_bytes()[:2000])
    good = pickle.dumps(estimator)
    version = sklearn.__version__.encode()
    contents: dict[str, bytes] = {
        "good.joblib": good,
        "older.pkl": good.replace(version, b"0" + version[1:]),
        "half.joblib": good[: len(good) // 2],
        "hostile.pkl": pickle.dumps(Bomb(tmp_path / "mark")),
        "moved.joblib": good.replace(b"_multilayer_perceptron", b"_multilayer_perceptrom"),
        "boosted.pickle": b"ccatboost.core\nCatBoostClassifier\n.",
        "bundle.pickle": pickle.dumps({"model": 1, "scaler": 2}),
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("words", [["good.skops"], ["good.joblib", "--trust"], ["good.skops", "--trust"]])
def test_files(files: Path, cli: Callable[..., Ran], words: Sequence[str]) -> None:
    ran = cli("convert", *words, "-o", "out.onnx")
    assert ran.code == 0, ran.err
    assert "label:int64[batch], probabilities:float32[batch,3]" in ran.out
    assert "may not compute" not in ran.err
    assert Parity.of(Model.load("out.onnx")).passed


def test_another_version_is_said(files: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("convert", "older.pkl", "--trust", "-o", "out.onnx")
    assert ran.code == 0, ran.err
    assert "written by scikit-learn" in ran.err and "may not compute what it did" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "messages"),
    [
        (["good.joblib"], 2, ["a pickle is a program", "skops.io.dump", "--trust"]),
        (["hostile.pkl"], 2, ["a pickle is a program"]),
        (["hostile.pkl", "--trust"], 2, ["no scikit-learn estimator"]),
        (["custom.skops"], 2, ["not scikit-learn's", "Doubled"]),
        (["half.skops"], 2, ["skops cannot read the file"]),
        (["half.joblib", "--trust"], 2, ["cannot read the file"]),
        (
            ["moved.joblib", "--trust"],
            2,
            ["cannot read the file", "_multilayer_perceptrom", "load it with the scikit-learn 1."],
        ),
        (["boosted.pickle", "--trust"], 2, ["catboost", "only scikit-learn's, xgboost's"]),
        (["bundle.pickle", "--trust"], 2, ["no scikit-learn estimator", "model, scaler"]),
        (["good.onnx", "--trust"], 2, ["never runs a file's code", "--trust with sklearn"]),
    ],
)
def test_refusals(files: Path, cli: Callable[..., Ran], words: Sequence[str], code: int, messages: list[str]) -> None:
    Path("good.onnx").write_bytes(b"x")
    ran = cli("convert", *words, "-o", "out.onnx")
    assert ran.code == code, ran.err
    assert all(message in ran.err for message in messages), ran.err
    assert ran.err.count("error: ") == 1 and "Traceback" not in ran.err and not Path("out.onnx").exists()
    assert (files / "mark").exists() == (words == ["hostile.pkl", "--trust"])


def test_perceptrons_are_compressed(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """A layer is one Gemm, which has an integer kernel: the digits keep their classes within 5 points of 450."""
    x, y = datasets.load_digits(return_X_y=True)
    x = x.astype(np.float32)
    fit, test, labels, truth = train_test_split(x, y, random_state=0)
    estimator = make_pipeline(StandardScaler(), MLPClassifier((128, 128), max_iter=30, random_state=0)).fit(fit, labels)
    model = edgerun.convert(estimator, output=tmp_path / "m.onnx")
    assert {node.op_type for node in model.ir.graph} == {
        "Sub", "Mul", "Gemm", "Relu", "Softmax", "ArgMax", "Reshape", "Gather", "Cast",
    }  # fmt: skip
    assert {node.domain for node in model.ir.graph} == {""}
    np.savez(tmp_path / "calibration.npz", X=fit[:200])
    np.savez(tmp_path / "test.npz", X=test, y=truth)
    ran = cli("compress", tmp_path / "m.onnx", "--calibration", tmp_path / "calibration.npz", "-o", tmp_path / "q.onnx")
    assert ran.code == 0 and re.search("[23] nodes on integers", ran.out), ran.err
    ran = cli("eval", tmp_path / "q.onnx", "--baseline", tmp_path / "m.onnx", "--data", tmp_path / "test.npz", "--json")
    found = json.loads(ran.out)
    assert ran.code == 0 and found["accuracy"] > 0.9


def _table(rows: int = 200) -> tuple[Any, np.ndarray]:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    table = pandas.DataFrame(
        {
            "age": rng.integers(18, 80, rows).astype(float),
            "income k$": rng.normal(50, 10, rows),
            "city": rng.choice(["Rome", "Oslo", "Bonn"], rows),
            "size": rng.choice(["S", "M", "L"], rows),
            "doors": rng.integers(0, 4, rows),
            "unused": rng.normal(size=rows),
        }
    )
    return table, ((table["city"] == "Oslo") ^ (table["age"] > 40)).to_numpy().astype(int)


def test_columns_of_text_and_numbers(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    table, y = _table()
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["age", "income k$"]),
            ("text", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("order", OrdinalEncoder(), ["size"]),
            ("counts", OneHotEncoder(), ["doors"]),
        ]
    )
    estimator = make_pipeline(columns, LogisticRegression(max_iter=500)).fit(table, y)
    model = edgerun.convert(estimator, output=tmp_path / "m.onnx")
    assert [str(spec) for spec in model.inputs] == [
        "age:float32[batch,1]", "income k$:float32[batch,1]", "city:object[batch,1]", "size:object[batch,1]",
        "doors:int64[batch,1]",
    ]  # fmt: skip
    table.loc[0, "city"] = "Paris"
    dtypes: dict[str, Any] = {"age": np.float32, "income k$": np.float32, "city": str, "size": str, "doors": np.int64}
    feeds = {name: table[name].to_numpy().astype(dtype)[:, None] for name, dtype in dtypes.items()}
    with edgerun.load(tmp_path / "m.onnx") as session:
        found = session.run(feeds)
    np.testing.assert_allclose(found["probabilities"], estimator.predict_proba(table), atol=1e-5)
    np.savez(tmp_path / "test.npz", y=y, **feeds)
    assert cli("run", tmp_path / "m.onnx", "--feeds", tmp_path / "test.npz", "-o", tmp_path / "o.npz").code == 2  # y
    ran = cli("eval", tmp_path / "m.onnx", "--data", tmp_path / "test.npz", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["accuracy"] == pytest.approx(estimator.score(table, y))
