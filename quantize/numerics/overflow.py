"""16-bit saturation of u8·s8 products, as vpmaddubsw adds them."""

from __future__ import annotations

import numpy as np

LOWEST, HIGHEST, CODE = -32768, 32767, 255


def pairs_at_risk(weight: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of neighbours (2i, 2i+1) of int8 `weight` `[O, K]` that can leave 16 bits with codes 0..255.

    A pair (a, b) reaches 255·(max(a, 0) + max(b, 0)) at most and 255·(min(a, 0) + min(b, 0)) at least.
    Returns float32 `[P, K]`, each row with its two weights in their places, and the output channels int64 `[P]`; at
    most `most` of them, those first that can exceed furthest.
    """
    wide = weight.astype(np.int64)
    if wide.shape[1] % 2:
        wide = np.pad(wide, ((0, 0), (0, 1)))
    twos = wide.reshape(len(wide), -1, 2)
    above = CODE * np.maximum(twos, 0).sum(axis=2) - HIGHEST
    below = LOWEST - CODE * np.minimum(twos, 0).sum(axis=2)
    excess = np.maximum(above, below)
    rows, places = np.nonzero(excess > 0)
    order = np.argsort(-excess[rows, places], kind="stable")[:most]
    rows, places = rows[order], places[order]
    pairs = np.zeros((len(rows), wide.shape[1]), np.float32)
    for offset in (0, 1):
        pairs[np.arange(len(rows)), 2 * places + offset] = twos[rows, places, offset]
    return pairs[:, : weight.shape[1]], rows
