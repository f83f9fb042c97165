"""Weights in few bits with one scale and zero point per block of inputs, as MatMulNBits stores them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHRINK = tuple(np.linspace(1.0, 0.5, 21))  # shares of a block's range that the grid search tries


@dataclass(frozen=True)
class BlockGrid:
    """r = s·(q − z) with q in [0, 2^bits − 1]; one s and z per output row and block of `block` inputs.

    `scale` float32 and `zero_point` uint8 are `[N, B]`, B = ⌈K / block⌉; the last block may be short.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    block: int
    bits: int

    def columns(self, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        """s and z of every weight, float32 `[N, K]` each, for K = `inputs`."""
        scale = np.repeat(self.scale, self.block, axis=1)[:, :inputs]
        zero_point = np.repeat(self.zero_point.astype(np.float32), self.block, axis=1)[:, :inputs]
        return scale, zero_point

    def quantize(self, weight: np.ndarray) -> np.ndarray:
        """q = clip(round(w/s) + z), ties to even; `[N, K]` -> uint8 `[N, K]`."""
        scale, zero_point = self.columns(weight.shape[1])
        stored: np.ndarray = np.clip(np.rint(weight / scale) + zero_point, 0, 2**self.bits - 1).astype(np.uint8)
        return stored

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """s·(q − z), float32 `[N, K]`."""
        scale, zero_point = self.columns(stored.shape[1])
        values: np.ndarray = (stored.astype(np.float32) - zero_point) * scale
        return values


def fitted(weight: np.ndarray, block: int, bits: int, importance: np.ndarray | None = None) -> BlockGrid:
    """The grid of `[N, K]` weights with the least Σ_k h_k·(w_k − ŵ_k)² in every block, among shrunken ranges.

    The grid spans p·[min(w, 0), max(w, 0)] for the best p of `SHRINK`; zero is always exactly on it. `importance` h is
    `[K]`, the mean square of each input (all ones when None): rounding a weight costs what its input makes of it.
    """
    rows, inputs = weight.shape
    blocks = -(-inputs // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :inputs] = weight
    cut = padded.reshape(rows, blocks, block)
    share = np.zeros(blocks * block, np.float32)
    share[:inputs] = 1.0 if importance is None else importance
    share = share.reshape(1, blocks, block)
    low, high = np.minimum(cut.min(axis=-1), 0.0), np.maximum(cut.max(axis=-1), 0.0)
    best = np.full((rows, blocks), np.inf, np.float32)
    scale, zero_point = np.ones((rows, blocks), np.float32), np.zeros((rows, blocks), np.uint8)
    for shrink in SHRINK:
        s, z = _spanning(low * np.float32(shrink), high * np.float32(shrink), bits)
        codes = np.clip(np.rint(cut / s[..., None]) + z[..., None], 0, 2**bits - 1)
        lost = (share * (cut - (codes - z[..., None]) * s[..., None]) ** 2).sum(axis=-1)
        better = lost < best
        best, scale = np.where(better, lost, best), np.where(better, s, scale)
        zero_point = np.where(better, z, zero_point).astype(np.uint8)
    return BlockGrid(scale.astype(np.float32), zero_point, block, bits)


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


def _bits(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    pairs: np.ndarray = even[:, 0::2] | (even[:, 1::2] << 4)
    return pairs
