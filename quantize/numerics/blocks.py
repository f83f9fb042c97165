"""Weights in few bits with one scale and zero point per block of inputs, as MatMulNBits stores them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SHRINK = tuple(np.linspace(1.0, 0.5, 21))  # shares of a block's range that the grid search tries
BAND = 1 << 16  # weights that are looked at together: arrays of 256 kB


@dataclass(frozen=True)
class BlockGrid:
    """r = s·(q − z) with q in [0, 2^bits − 1]; one s and z per output row and block of `block` inputs.

    `scale` float32 and `zero_point` uint8 are `[N, B]`, B = ⌈K / block⌉; the last block may be short.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    block: int
    bits: int

    def rows(self, part: slice) -> BlockGrid:
        """The grid of some output rows."""
        return replace(self, scale=self.scale[part], zero_point=self.zero_point[part])

    def columns(self, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        """s and z of every weight, float32 `[N, K]` each, for K = `inputs`."""
        scale = np.repeat(self.scale, self.block, axis=1)[:, :inputs]
        zero_point = np.repeat(self.zero_point.astype(np.float32), self.block, axis=1)[:, :inputs]
        return scale, zero_point

    def quantize(self, weight: np.ndarray) -> np.ndarray:
        """q = clip(round(w/s) + z), ties to even; `[N, K]` -> uint8 `[N, K]`."""
        stored = np.empty(weight.shape, np.uint8)
        for rows in _bands(*weight.shape):
            scale, zero_point = self.rows(rows).columns(weight.shape[1])
            steps = np.rint(np.divide(weight[rows], scale, out=scale), out=scale)
            stored[rows] = np.clip(np.add(steps, zero_point, out=steps), 0, 2**self.bits - 1, out=steps)
        return stored

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """s·(q − z), float32 `[N, K]`."""
        scale, zero_point = self.columns(stored.shape[1])
        values: np.ndarray = (stored.astype(np.float32) - zero_point) * scale
        return values


def fitted(
    weight: np.ndarray, block: int, bits: int, importance: np.ndarray | None = None, *, symmetric: bool = False
) -> BlockGrid:
    """The grid of `[N, K]` weights with the least Σ_k h_k·(w_k − ŵ_k)² in every block, among shrunken ranges.

    The grid spans p·[min(w, 0), max(w, 0)] for the best p of `SHRINK`; zero is always exactly on it. A `symmetric` one
    has the zero point 2^(bits − 1), in the middle, and spans what holds both ends. `importance` h is `[K]`, the mean
    square of each input (all ones when None): rounding a weight costs what its input makes of it.
    """
    blocks = -(-weight.shape[1] // block)
    share = None
    if importance is not None:
        share = _by_block(np.asarray(importance, np.float32)[None], blocks, block)
    bands = [_fitted(_by_block(weight[rows], blocks, block), bits, share, symmetric) for rows in _bands(*weight.shape)]
    scale, zero_point = (np.concatenate(part) for part in zip(*bands, strict=True))
    return BlockGrid(scale, zero_point, block, bits)


def _fitted(cut: np.ndarray, bits: int, share: np.ndarray | None, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """s float32 and z uint8 `[n, B]` for weights `[block, n, B]`."""
    low, high = np.minimum(cut.min(axis=0), 0.0), np.maximum(cut.max(axis=0), 0.0)
    if symmetric:  # as many steps below zero as z says, one less above: the larger side chooses s
        middle = np.float32(2 ** (bits - 1))
        low = np.minimum(low, -high * (middle / (middle - 1)))
        high = -low * ((middle - 1) / middle)
    best = np.full(low.shape, np.inf, np.float32)
    scale, zero_point = np.ones_like(best), np.zeros_like(best)
    error = np.empty_like(cut)
    for shrink in SHRINK:
        s, z = _spanning(low * np.float32(shrink), high * np.float32(shrink), bits)
        np.rint(np.divide(cut, s, out=error), out=error)
        np.minimum(np.maximum(error, -z, out=error), 2**bits - 1 - z, out=error)
        np.square(np.subtract(np.multiply(error, s, out=error), cut, out=error), out=error)
        lost = (error if share is None else np.multiply(error, share, out=error)).sum(axis=0)
        better = lost < best
        for kept, new in ((best, lost), (scale, s), (zero_point, z)):
            np.copyto(kept, new, where=better)
    if symmetric:  # of blocks without a weight that is not zero, too
        zero_point[:] = 2 ** (bits - 1)
    return scale, zero_point.astype(np.uint8)


def _bands(rows: int, inputs: int) -> list[slice]:
    """Rows that are looked at together: as many as a core's own cache has room for."""
    step = max(1, BAND // max(1, inputs))
    return [slice(start, start + step) for start in range(0, max(1, rows), step)]


def _by_block(weight: np.ndarray, blocks: int, block: int) -> np.ndarray:
    """`[n, K]` as `[block, n, B]`, padded with zeros: what belongs to a block lies apart, so that loops are long."""
    padded = np.zeros((len(weight), blocks * block), np.float32)
    padded[:, : weight.shape[1]] = weight
    return np.ascontiguousarray(padded.reshape(len(weight), blocks, block).transpose(2, 0, 1))


def _spanning(low: np.ndarray, high: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    last = 2**bits - 1
    scale = ((high - low) / last).astype(np.float32)
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1.0))
    return scale, np.clip(np.rint(-low / scale), 0, last).astype(np.float32)


def packed(stored: np.ndarray, grid: BlockGrid) -> tuple[np.ndarray, np.ndarray]:
    """MatMulNBits' B uint8 `[N, B, block·bits/8]` and its zero points uint8 `[N·⌈B·bits/8⌉]`; low bits come first.

    Inputs beyond K are stored as their block's zero point: they count as zero. (ONNX Runtime's ContribOperators.md.)
    """
    rows, inputs = stored.shape
    blocks = grid.scale.shape[1]
    full = np.repeat(grid.zero_point, grid.block, axis=1)
    full[:, :inputs] = stored
    return _bits(full, grid.bits).reshape(rows, blocks, -1), _bits(grid.zero_point, grid.bits).reshape(-1)


def unpacked(
    stored: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, inputs: int, bits: int, block: int
) -> tuple[np.ndarray, BlockGrid]:
    """The inverse of `packed`: codes uint8 `[N, K]`, K = `inputs`, and their grid (zero points of blocks included)."""
    rows, blocks = stored.shape[:2]
    points = _codes(zero_point.reshape(rows, -1), bits)[:, :blocks]
    codes = _codes(stored.reshape(rows, -1), bits)[:, :inputs]
    return codes, BlockGrid(scale.reshape(rows, blocks), points, block, bits)


def _codes(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _bits(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    pairs: np.ndarray = even[:, 0::2] | (even[:, 1::2] << 4)
    return pairs
