"""Reading scikit-learn files. A pickle is a program, and reading it runs it: only for those who trust it."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

from edgerun.converters import _boosting
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError

PICKLES = frozenset({".joblib", ".pkl", ".pickle"})
SUFFIXES = PICKLES | {".skops"}
# Parts of scikit-learn's own estimators that skops leaves to the reader to trust. They hold arrays and run nothing of
# the file's; indices that point outside make compiled code read what is not there: the limited child ends, not more.
OWN = frozenset(
    f"sklearn.{name}"
    for name in (
        "_loss.loss.HalfTweedieLoss", "_loss.loss.HalfTweedieLossIdentity", "calibration._CalibratedClassifier",
        "calibration._SigmoidCalibration", "ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "metrics._dist_metrics.EuclideanDistance64", "neighbors._ball_tree.BallTree", "neighbors._kd_tree.KDTree",
        "neural_network._stochastic_optimizers.AdamOptimizer", "neural_network._stochastic_optimizers.SGDOptimizer",
        "tree._tree.Tree", "utils._bunch.Bunch",
    )
)  # fmt: skip
log = logging.getLogger("edgerun")


def load(path: Path, trust: bool) -> Any:
    """The estimator in a file. Raises EdgerunError for what may not or cannot be read.

    A `.skops` file is data; types that skops does not know are refused by name unless `trust` is given. So are the own
    files of XGBoost and LightGBM. Everything else is a pickle: not even opened without `trust`, and run with it.
    """
    if _boosting.library(path):
        return _boosting.load(path)
    if path.suffix.lower() != ".skops" and not trust:
        raise EdgerunError(
            "a pickle is a program: reading it runs its code", got=path.name,
            do="save the estimator with skops (skops.io.dump(estimator, 'model.skops')); "
            "or, if you made this file yourself, give --trust",
        )  # fmt: skip
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        found = _skops(path, trust) if path.suffix.lower() == ".skops" else _pickle(path)
    _tell_versions(noted)
    if isinstance(found, type) or not hasattr(found, "get_params") or not hasattr(found, "fit"):
        got = type(found).__name__
        keys = f" with {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else ""
        raise EdgerunError(
            "the file holds no scikit-learn estimator", got=f"{got}{keys}", do="save the fitted estimator alone"
        )
    return found


def _skops(path: Path, trust: bool) -> Any:
    from skops import io  # type: ignore[import-untyped]

    try:
        asked = io.get_untrusted_types(file=path)
    except Exception as error:  # zip, JSON and key errors, by the kind of damage
        raise EdgerunError(
            "skops cannot read the file", got=_named(error), do="save it again with skops.io.dump"
        ) from error
    if (unknown := [name for name in asked if name not in OWN]) and not trust:
        raise EdgerunError(
            "the file asks for types that are not scikit-learn's: building them runs their code",
            got=", ".join(unknown[:8]) + (" …" if len(unknown) > 8 else ""),
            do="replace them by scikit-learn's own; or, if they are yours, give --trust",
        )
    try:
        return io.load(path, trusted=asked)
    except Exception as error:  # whatever the types' own constructors raise
        raise _unreadable(path, error) from error


def _pickle(path: Path) -> Any:
    import joblib  # type: ignore[import-untyped]

    try:
        return joblib.load(path)
    except Exception as error:  # a program may raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> EdgerunError:
    import sklearn  # type: ignore[import-untyped]

    absent = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if absent and not absent.startswith("sklearn"):
        return EdgerunError(
            f"the file needs a module that is not installed here: {absent}", got=path.name,
            do="install what the file was made with; only scikit-learn's, xgboost's and lightgbm's estimators are read",
        )  # fmt: skip
    wrote = " or ".join(_writers(path)) or "that wrote it"
    return EdgerunError(
        f"scikit-learn {sklearn.__version__} cannot read the file", got=_named(error),
        do=f"load it with the scikit-learn {wrote}, and save it again with skops or under the version here",
    )  # fmt: skip


def _writers(path: Path) -> list[str]:
    """The scikit-learn versions that a pickle's estimators say they are from; [] where it is compressed."""
    found = re.findall(rb"_sklearn_version[^0-9]{1,8}([0-9]+(?:\.[0-9]+){1,2})", path.read_bytes())
    return sorted({version.decode(errors="replace") for version in found})


def _tell_versions(noted: list[warnings.WarningMessage]) -> None:
    """A file of another scikit-learn may load and compute something else: nobody can tell from the file alone."""
    messages: list[Any] = [w.message for w in noted if hasattr(w.message, "original_sklearn_version")]
    for wrote, reads in sorted({(m.original_sklearn_version, m.current_sklearn_version) for m in messages}):
        log.warning("written by scikit-learn %s, read by %s: it may not compute what it did when it was trained; "
                    "convert it under the version that wrote it to be sure", wrote, reads)  # fmt: skip


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
