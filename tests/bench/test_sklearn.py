"""Estimators that somebody else trained, a spam filter's, pinned in the cache: pickles, and trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgerun
from bench import zoo_fetch
from edgerun.errors import EdgerunError
from edgerun.parity import Parity

pytest.importorskip("skl2onnx")
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]


def _file(folder: Path, member: str) -> Path:
    if not zoo_fetch.SPAM.path.exists():
        fetching = "python -c 'from bench import zoo_fetch as z; z.fetch(z.SPAM)'"
        pytest.skip(f"{zoo_fetch.SPAM.file} is not in the cache: {fetching}")
    path = folder / Path(member).name
    path.write_bytes(zoo_fetch.read(zoo_fetch.SPAM, f"spam_detector_ai/models/{member}"))
    return path


@pytest.mark.parametrize(
    ("member", "output"),
    [
        ("bayes/naive_bayes_model.joblib", "probabilities"),
        ("logistic_regression/logistic_regression_model.joblib", "probabilities"),
        ("random_forest/random_forest_model.joblib", "probabilities"),
        ("svm/svm_model.joblib", "scores"),
    ],
)
def test_a_spam_filter(tmp_path: Path, member: str, output: str) -> None:
    path = _file(tmp_path, member)
    with pytest.raises(EdgerunError, match="a pickle is a program"):
        edgerun.convert(path)
    model = edgerun.convert(path, trust=True)
    assert [spec.name for spec in model.outputs] == ["label", output]
    assert Parity.of(model).passed and '"ham"' in model.ir.metadata_props["classes"]


@pytest.mark.parametrize(
    ("member", "message"),
    [("svm/svm_vectoriser.joblib", "behind the vectorizer")],
)
def test_what_is_not_read_is_said(tmp_path: Path, member: str, message: str) -> None:
    path = _file(tmp_path, member)
    with pytest.raises(EdgerunError, match=message):
        edgerun.convert(path, trust=True)
