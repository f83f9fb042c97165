"""From two evaluations of one test set to numbers: accuracy, paired drop, agreement, SQNR, cosine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench import zoo
from edgerun import metrics


def scored(model: zoo.ZooModel, baseline: Path, other: Path) -> dict[str, Any]:
    """`other` against fp32 on the same examples; shares are 0..1, `sqnr_db` in dB, intervals of 95 %.

    `drop` is the paired accuracy drop; `agreement` the share of equal top-1 over all outputs; `cosine` the mean over
    examples.
    """
    with np.load(baseline) as a, np.load(other) as b:
        reference, outputs, labels = a["outputs"], b["outputs"], a["labels"]
    if not model.labelled:
        labels = reference.argmax(axis=1)
    before, after = model.correct(reference, labels), model.correct(outputs, labels)
    lost, gained, n = int((before & ~after).sum()), int((after & ~before).sum()), len(labels)
    accuracy, drop = metrics.wilson(int(after.sum()), n), metrics.paired_drop(lost, gained, n)
    return {
        "n": n,
        "accuracy": {"value": float(after.mean()), "low": accuracy.low, "high": accuracy.high},
        "drop": {"value": (lost - gained) / n, "low": drop.low, "high": drop.high},
        "agreement": metrics.top1_agreement(reference, outputs),
        "sqnr_db": None if baseline == other else metrics.sqnr_db(reference, outputs),
        "cosine": _mean_cosine(reference, outputs),
    }


def _mean_cosine(reference: np.ndarray, outputs: np.ndarray) -> float:
    r, v = (a.astype(np.float64).reshape(len(a), -1) for a in (reference, outputs))
    norms = np.linalg.norm(r, axis=1) * np.linalg.norm(v, axis=1)
    return float(np.mean(np.divide((r * v).sum(axis=1), norms, out=np.zeros(len(r)), where=norms > 0)))
