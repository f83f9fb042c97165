"""Does the data look as the model expects? Forms that pictures are fed in, and how a network tells them apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EDGE = 0.09  # of the width: interpolation overshoots the ends, and the means may stand in the other colour order
SIDE = 160  # pixels
LEVEL = 3.0  # standard deviation of the logits of classifiers that know their pictures (ImageNet: 2.2 to 3)


@dataclass(frozen=True)
class Form:
    """What pixels 0..255 became: x = (pixel·scale − mean) / std, `mean` and `std` `[C]` or `[1]`."""

    name: str
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """a, b `[C]` or `[1]` float64 with x = a·pixel + b."""
        std = np.array(self.std)
        return self.scale / std, -np.array(self.mean) / std


FORMS = (
    Form("0..255"),
    Form("0..1", 1 / 255),
    Form("-1..1", 1 / 127.5, (1.0,)),
    Form("0..1 less ImageNet's mean over its std", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Form("0..255 less ImageNet's mean (Caffe)", 1.0, (103.939, 116.779, 123.68)),
)


def forms_of(low: np.ndarray, high: np.ndarray) -> list[Form]:
    """The forms that data with extremes `low`, `high` `[C]` per channel can have.

    The ends must lie inside the form's own, and the data must use a third of its width: numbers between 0 and 1 could
    be nearly black pixels 0..255, and are not.
    """
    found = []
    for form in FORMS:
        gain, shift = form.affine()
        if len(gain) > 1 and len(gain) != len(low) or len(shift) > 1 and len(shift) != len(low):
            continue
        ends = shift, 255 * gain + shift
        width = ends[1] - ends[0]
        inside = (low >= ends[0] - EDGE * width).all() and (high <= ends[1] + EDGE * width).all()
        if inside and np.max((high - low) / width) > 1 / 3 and not _crosses_nothing(low, ends[0], width):
            found.append(form)
    return found


def _crosses_nothing(low: np.ndarray, start: np.ndarray, width: np.ndarray) -> bool:
    """A form with negative numbers, seen without any: it is another one."""
    return bool((start < -EDGE * width).all() and (low >= 0).all())


def reform(x: np.ndarray, given: Form, wanted: Form, axis: int) -> np.ndarray:
    """`x` of form `given` as form `wanted`; `axis` holds the channels; same dtype and shape."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    (a, b), (c, d) = given.affine(), wanted.affine()
    gain = np.broadcast_to(c / a, x.shape[axis]).reshape(shape)
    shift = np.broadcast_to(d - c * b / a, x.shape[axis]).reshape(shape)
    changed: np.ndarray = (x * gain + shift).astype(x.dtype)
    return changed


def interleaved(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """`x` with its buffer read in the other layout: NHWC pixels laid into an NCHW array, or the reverse, undone.

    Same shape and dtype: `[n, C, H, W]`, or `[n, H, W, C]` with `channels_last`.
    """
    n, *rest = x.shape
    if channels_last:
        height, width, channels = rest
        return np.ascontiguousarray(x.reshape(n, channels, height, width).transpose(0, 2, 3, 1))
    channels, height, width = rest
    return np.ascontiguousarray(x.reshape(n, height, width, channels).transpose(0, 3, 1, 2))


def roughness(x: np.ndarray, channels_last: bool) -> float:
    """Mean |difference of neighbours| along both axes of a picture over its mean |x − mean|; noise is near 1.4.

    Of the middle, SIDE pixels each way: more of them say the same.
    """
    axes = (1, 2) if channels_last else (2, 3)
    for axis in axes:
        start = max(0, x.shape[axis] - SIDE) // 2
        x = x[(*[slice(None)] * axis, slice(start, start + SIDE))]
    spread = np.abs(x - x.mean(axis=axes, keepdims=True, dtype=np.float64)).mean(dtype=np.float64)
    steps = [np.abs(np.diff(x, axis=axis)).mean(dtype=np.float64) for axis in axes]
    return float(np.mean(steps) / spread) if spread > 0 else 0.0


def misfit(means: np.ndarray, squares: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """How far activations are from what BatchNormalization saw in training, in nats per channel on a log scale.

    `means`, `squares` `[n, C]`: per sample, the mean of x and of x² over positions; `mean`, `variance` `[C]`: the
    running statistics μ, σ². With m, v of all samples, the divergence of normal laws per channel is
    D = ½·(v/σ² + (m − μ)²/σ² − 1 − ln(v/σ²)); mean over channels of ln(1 + D), which one odd channel does not rule.
    (Running statistics as a picture of the training data: Yin et al., Dreaming to Distill, 2020, eq. 4.)
    """
    m, square = means.mean(axis=0, dtype=np.float64), squares.mean(axis=0, dtype=np.float64)
    v = np.maximum(square - m * m, 1e-9 * square + 1e-30)
    known = np.maximum(variance.astype(np.float64), 1e-12)
    divergence = 0.5 * (v / known + (m - mean) ** 2 / known - 1 - np.log(v / known))
    return float(np.log1p(np.maximum(divergence, 0.0)).mean())


def logits(scores: np.ndarray) -> np.ndarray:
    """Logits `[n, C]` float64 of what `scores` `[n, C]` mean: probabilities, or logits as they are."""
    x = scores.astype(np.float64)
    if x.min() < 0 or np.abs(x.sum(axis=1) - 1).max() > 1e-3:
        return x
    known: np.ndarray = np.log(np.maximum(x, 1e-12))
    return known


def shares(logits: np.ndarray) -> np.ndarray:
    """Probabilities `[n, C]` of `logits` `[n, C]` (softmax)."""
    x: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    x /= x.sum(axis=1, keepdims=True)
    return x


def levelled(logits: np.ndarray) -> np.ndarray:
    """`logits` `[n, C]` less each row's mean, at a standard deviation of LEVEL over all: the same from any scale."""
    x = logits - logits.mean(axis=1, keepdims=True)
    scaled: np.ndarray = x * (LEVEL / max(float(x.std()), 1e-30))
    return scaled


def told(p: np.ndarray) -> tuple[float, np.ndarray]:
    """Nats that classes tell of samples: H(mean of p) - mean of H(p), of `p` `[n, C]`; and that without each, `[n]`.

    The mutual information of sample and class: large where each sample has its own class, and surely. (The logarithm of
    the inception score: Salimans et al., Improved Techniques for Training GANs, 2016.)
    """
    n, own = len(p), _nats(p)
    without = _nats((p.sum(axis=0) - p) / max(n - 1, 1)) - (own.sum() - own) / max(n - 1, 1)
    return float(_nats(p.mean(axis=0)) - own.mean()), without


def _nats(p: np.ndarray) -> np.ndarray:
    nats: np.ndarray = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
    return nats


def entropy(scores: np.ndarray) -> np.ndarray:
    """Entropy in nats `[n]` of the classes that `scores` `[n, C]` mean: probabilities as they are, or logits."""
    return _nats(shares(logits(scores)))


def t_value(differences: np.ndarray) -> float:
    """Mean over standard error of paired differences `[n]`; 0 for fewer than two or all equal to zero."""
    if len(differences) < 2 or not differences.any():
        return 0.0
    spread = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() / max(spread, 1e-12))
