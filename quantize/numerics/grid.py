"""The integer grid: real value r and stored q with r = s·(q − z). ONNX QuantizeLinear/DequantizeLinear semantics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BOUNDS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True)
class Grid:
    """Scale s (float32, scalar or `[C]`, > 0) and zero point z (`dtype`, same shape); `axis` is the channel axis.

    Scales that differ along more axes than one have those of what they belong to, and `axis` is None.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """q = saturate(round_half_even(r / s) + z), as ONNX QuantizeLinear; float32 in, `zero_point.dtype` out."""
        scale, zero_point = self.broadcast(values.ndim)
        low, high = BOUNDS[self.zero_point.dtype.name]
        steps = np.asarray(values / scale)
        np.rint(steps, out=steps)  # in place: memory that is new costs more than arithmetic
        steps += zero_point.astype(np.float32)
        stored: np.ndarray = np.clip(steps, low, high, out=steps).astype(self.zero_point.dtype)
        return stored

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """r = s·(q − z), float32."""
        scale, zero_point = self.broadcast(stored.ndim)
        values: np.ndarray = (stored.astype(np.float32) - zero_point.astype(np.float32)) * scale
        return values

    def broadcast(self, ndim: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point with the axes of an array of `ndim`."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


def asymmetric(low: float, high: float, dtype: str = "uint8") -> Grid:
    """The grid whose 256 values span [min(low, 0), max(high, 0)]; zero is always exactly on it.

    A tensor that never leaves zero gets scale 1.
    """
    first, last = BOUNDS[dtype]
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32((high - low) / (last - first))
    if not scale > np.finfo(np.float32).tiny:
        scale = np.float32(1.0)
    zero_point = np.clip(np.rint(first - low / float(scale)), first, last)
    return Grid(np.asarray(scale, np.float32), np.asarray(zero_point, dtype))


def centred(low: float, high: float) -> tuple[float, float]:
    """The interval whose asymmetric grid of 256 steps has its zero in the middle and 127 steps to the larger end.

    [−128·s, 127·s] with s = max(−low, high) / 127, which is `symmetric`'s grid with one step more below.
    """
    bound = max(-float(low), float(high), 0.0)
    return -bound * 128 / 127, bound


def symmetric(
    bound: np.ndarray | float, dtype: str = "int8", axis: int | None = None, steps: float | np.ndarray = 127
) -> Grid:
    """The grid with zero point 0 (128 for uint8) where ±`bound` is ±`steps` steps; both are scalars or `[C]`.

    A channel of zeros takes the largest scale of the others (its bias is stored in steps of s_x·s_w, which must not
    be coarse); a tensor of zeros takes scale 1.
    """
    scale = np.asarray(np.asarray(bound, np.float32) / np.asarray(steps, np.float32))
    usable = scale > np.finfo(np.float32).tiny
    scale = np.where(usable, scale, scale.max(initial=0.0) if usable.any() else 1.0).astype(np.float32)
    zero_point = np.full(scale.shape, 128 if dtype == "uint8" else 0, dtype)
    return Grid(scale, zero_point, axis)


def channel_bounds(weight: np.ndarray, axis: int | None) -> np.ndarray:
    """max |w| for each channel on `axis` (`[C]`), or of the whole tensor (scalar) when `axis` is None."""
    rest = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    bounds: np.ndarray = np.maximum(weight.max(axis=rest), -weight.min(axis=rest))
    return bounds


def quantize_bias(bias: np.ndarray, input_scale: np.ndarray, weight_grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """b_q = round(b / (s_x·s_w)) as int32 `[C]`, and its scale s_x·s_w as float32 `[C]` or scalar.

    Call `widen` first: values outside int32 saturate.
    """
    scale = (input_scale * weight_grid.scale).astype(np.float32)
    steps = np.rint(bias.astype(np.float64) / scale)
    limits = np.iinfo(np.int32)
    return np.clip(steps, limits.min, limits.max).astype(np.int32), scale


def widen(grid: Grid, bias: np.ndarray, input_scale: np.ndarray, dead: bool = False) -> Grid:
    """Raise a weight scale where the int32 bias would overflow: s_w ≥ |b| / (s_x·2³⁰) in each channel.

    `dead` says that all weights are zero: then only the bias needs the scale, and max |b| gets 2¹⁵ steps.
    """
    size = np.abs(bias.astype(np.float64)) / float(input_scale)
    if dead and size.any():
        steps = np.full_like(grid.scale, max(size.max() / 2**15, float(np.finfo(np.float32).tiny)))
        return Grid(steps, grid.zero_point, grid.axis)
    least = (size / 2**30).astype(np.float32)
    if grid.axis is None:
        least = np.asarray(least.max(initial=0.0), np.float32)
    return Grid(np.maximum(grid.scale, least), grid.zero_point, grid.axis)
