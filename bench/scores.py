"""From two evaluations of one test set to numbers: accuracy, paired drop, agreement, SQNR, cosine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench import zoo
from edgerun import metrics

Interval = dict[str, float]


def scored(model: zoo.ZooModel, baseline: Path, other: Path) -> dict[str, Any]:
    """`other` against fp32 on the same examples; shares are 0..1, `sqnr_db` in dB, intervals of 95 %.

    `drop` is the paired accuracy drop; `agreement` the mean of what the model calls agreement; `cosine` the mean over
    examples. Without labels agreement with fp32 is the accuracy, and what is missing of it the drop.
    """
    with np.load(baseline) as a, np.load(other) as b:
        reference, outputs, labels = a["outputs"], b["outputs"], a["labels"]
    agreement = model.agree(reference, outputs).astype(np.float64)
    accuracy, drop = _on_labels(model, reference, outputs, labels) if model.correct else _as_agreement(agreement)
    return {
        "n": len(labels),
        "accuracy": accuracy,
        "drop": drop,
        "agreement": float(agreement.mean()),
        "sqnr_db": None if baseline == other else metrics.sqnr_db(reference, outputs),
        "sqnr_interval": None if baseline == other else _sqnr_interval(reference, outputs),
        "cosine": _mean_cosine(reference, outputs),
    }


def _on_labels(
    model: zoo.ZooModel, reference: np.ndarray, outputs: np.ndarray, labels: np.ndarray
) -> tuple[Interval, Interval]:
    assert model.correct
    before, after = model.correct(reference, labels), model.correct(outputs, labels)
    lost, gained, n = int((before & ~after).sum()), int((after & ~before).sum()), len(labels)
    accuracy, drop = metrics.wilson(int(after.sum()), n), metrics.paired_drop(lost, gained, n)
    return (
        {"value": float(after.mean()), "low": accuracy.low, "high": accuracy.high},
        {"value": (lost - gained) / n, "low": drop.low, "high": drop.high},
    )


def _as_agreement(agreement: np.ndarray) -> tuple[Interval, Interval]:
    # Shares such as an intersection over union are no yes or no.
    low, high = np.quantile(agreement[_drawn(len(agreement))].mean(axis=1), (0.025, 0.975))
    value = agreement.mean()
    told = {"value": float(value), "low": float(low), "high": float(high)}
    return told, {"value": float(1 - value), "low": float(1 - high), "high": float(1 - low)}


def _sqnr_interval(reference: np.ndarray, outputs: np.ndarray) -> Interval | None:
    """Of the SQNR over all examples, where a few may make most of the noise; None where examples are no rows."""
    if reference.ndim < 2:
        return None
    signal = np.square(reference.astype(np.float64)).reshape(len(reference), -1).sum(axis=1)
    noise = np.square(outputs.astype(np.float64) - reference).reshape(len(reference), -1).sum(axis=1)
    rows = _drawn(len(reference))
    ratio = signal[rows].sum(axis=1) / np.maximum(noise[rows].sum(axis=1), np.finfo(np.float64).tiny)
    low, high = np.quantile(10 * np.log10(np.maximum(ratio, np.finfo(np.float64).tiny)), (0.025, 0.975))
    return {"low": float(low), "high": float(high)}


def _drawn(count: int) -> np.ndarray:
    """The examples drawn anew 2,000 times, by their places: `[2000, count]`."""
    return np.random.default_rng(0).integers(0, count, (2_000, count))


def _mean_cosine(reference: np.ndarray, outputs: np.ndarray) -> float:
    # One number per example has no direction: then the whole series is the vector.
    count = len(reference) if reference.ndim > 1 else 1
    r, v = (a.astype(np.float64).reshape(count, -1) for a in (reference, outputs))
    norms = np.linalg.norm(r, axis=1) * np.linalg.norm(v, axis=1)
    return float(np.mean(np.divide((r * v).sum(axis=1), norms, out=np.zeros(count), where=norms > 0)))
