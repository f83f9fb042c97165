"""Noise at a model's output, sample by sample, and what two variants of a model differ by."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgerun.quantize.numerics import paired

CAP_DB = 120.0  # more is called exact


def per_sample(
    reference: Mapping[str, np.ndarray], value: Mapping[str, np.ndarray], rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Σe² and Σr² of each sample `[rows, outputs]`, float64, e = value − reference.

    An output whose first axis is not `rows` long belongs to the samples as a whole: each gets its share.
    Values that are not finite where the reference is give an infinite Σe².
    """
    noise, signal = np.zeros((rows, len(reference))), np.zeros((rows, len(reference)))
    for column, (name, wanted) in enumerate(reference.items()):
        r, v = np.asarray(wanted, np.float64), np.asarray(value[name], np.float64)
        with np.errstate(invalid="ignore"):
            error = np.where(np.isfinite(r), np.where(np.isfinite(v), v - r, np.inf), 0.0)
        r = np.where(np.isfinite(r), r, 0.0)
        if r.ndim and len(r) == rows:
            noise[:, column] = (error.reshape(rows, -1) ** 2).sum(axis=1)
            signal[:, column] = (r.reshape(rows, -1) ** 2).sum(axis=1)
        else:
            noise[:, column], signal[:, column] = (error**2).sum() / rows, (r**2).sum() / rows
    return noise, signal


def relative(noise: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Σe² of each sample over the mean Σr² of all, averaged over the outputs: `[S]`; its mean is 1 / SQNR."""
    scale = np.maximum(signal.mean(axis=0), np.finfo(np.float64).tiny)
    shares: np.ndarray = (noise / scale).mean(axis=1)
    return shares


def decibels(noise: float) -> float:
    """−10·log10 of a relative noise power, between ±CAP_DB."""
    if not math.isfinite(noise):
        return -CAP_DB
    return float(np.clip(-10 * math.log10(max(noise, 1e-300)), -CAP_DB, CAP_DB))


def gain(before: np.ndarray, after: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """10·log10(mean before / mean after) in dB with its interval, from noises `[S]` of the same samples.

    The interval is Student's with S − 1 degrees of freedom around the value, its standard error from leaving out one
    sample at a time (jackknife); (g, −inf, inf) for one sample, which tells nothing of others.
    """
    n = len(before)
    value = decibels(float(after.mean())) - decibels(float(before.mean()))
    if n < 2:
        return value, -math.inf, math.inf
    left_out = np.array(
        [decibels(float(np.delete(after, i).mean())) - decibels(float(np.delete(before, i).mean())) for i in range(n)]
    )
    half = paired.student((1 + confidence) / 2, n - 1) * paired.jackknife(left_out)
    return value, value - half, value + half
