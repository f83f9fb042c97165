"""Per-channel maps, BatchNorm among them, as part of the layer before or behind."""

from __future__ import annotations

import numpy as np


def affine(
    scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, variance: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """BatchNorm at inference as y = g·x + t: g = γ / √(σ² + ε), t = β − μ·g; all `[C]`, float64."""
    gain = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    return gain, shift.astype(np.float64) - mean.astype(np.float64) * gain


def fold_into(
    weight: np.ndarray, bias: np.ndarray, gain: np.ndarray, shift: np.ndarray, axis: int, group: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """g∘(W·x + b) + t = (g∘W)·x + (g∘b + t), for a map of the layer's *output* channels; computed in float64.

    `weight` has its output channels on `axis`; `bias`, `gain` g and `shift` t are `[C]`. With `group` > 1
    (ConvTranspose) `axis` holds C / group channels and the groups lie along axis 0. Returns `weight`'s dtype.
    """
    if group == 1:
        shape = [1] * weight.ndim
        shape[axis] = -1
        split, by = weight, gain.reshape(shape)
    else:
        split = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        by = gain.reshape(group, 1, -1, *[1] * (weight.ndim - 2))
    folded = np.multiply(split, by, out=np.empty_like(split), dtype=np.float64, casting="same_kind")
    new_bias = bias.astype(np.float64) * gain + shift
    return folded.reshape(weight.shape), new_bias.astype(weight.dtype)


def fold_onward(
    weight: np.ndarray, bias: np.ndarray | None, gain: np.ndarray, shift: np.ndarray, axis: int, group: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """W·(g∘x + t) + b = (W∘g)·x + (b + W·t), for a map of the layer's *input* channels; computed in float64.

    `weight` has its input channels on `axis` (1 for Conv, with `group` groups along axis 0; 0 or 1 for Gemm);
    `gain` g and `shift` t are `[C]` over all input channels; `bias` is `[O]` or None. Returns `weight`'s dtype.
    """
    wide = weight.astype(np.float64)
    outputs = weight.shape[0] if axis == 1 else weight.shape[1]
    if axis == 0:
        scaled, moved = wide * gain[:, None], shift @ wide
    else:
        spread = [outputs, weight.shape[1]] + [1] * (weight.ndim - 2)
        per_output = np.repeat(np.stack([gain, shift]).reshape(2, group, -1), outputs // group, axis=1)
        scaled = wide * per_output[0].reshape(spread)
        moved = (wide * per_output[1].reshape(spread)).reshape(outputs, -1).sum(axis=1)
    base = 0.0 if bias is None else bias.reshape(-1).astype(np.float64)
    return scaled.astype(weight.dtype), (base + moved).astype(weight.dtype)
