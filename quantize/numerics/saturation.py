"""CPUs without a dot-product instruction add two u8·s8 products in 16 bits, and cut off what does not fit.

`vpmaddubsw` gives sat16(a₀·w₀ + a₁·w₁) for neighbours a₀, a₁ (uint8 codes) and w₀, w₁ (int8). Two products of one sign
reach 2·255·127 = 64,770, and the result ends at 32,767; of two signs they always fit. Weights are rows here, `[O, K]`:
output channels by products, K = (kernel position, input channel of the group), the channel fastest.
"""

from __future__ import annotations

import numpy as np

LIMIT = 32767
ANY = np.full((1, 1), 255)  # the largest uint8 code: what any input may have
FULL_STEPS, SAFE_STEPS = 127, 64  # 2·64·255 = 32,640: with 64 steps no pair ever saturates
LADDER = tuple(float(steps) for steps in np.geomspace(FULL_STEPS, SAFE_STEPS, 13))


def pairs(positions: int, channels: int) -> np.ndarray:
    """Which products may meet in one 16-bit sum: indices into K, int64 `[P, 2]`.

    Kernels that work on blocks of channels pair the channels (2j, 2j+1) at one position. Kernels that unroll the window
    pair the products (2m, 2m+1) of its row, which is the same for an even number of channels; for an odd one both are
    listed. With one channel it depends on the kernel which positions meet: every two are listed.
    """
    if channels == 1:
        return np.stack(np.triu_indices(positions, 1), axis=1)
    row = np.arange(positions * channels)
    blocked = row.reshape(positions, channels)[:, : channels // 2 * 2].reshape(-1, 2)
    if channels % 2 == 0:
        return blocked
    return np.unique(np.concatenate([blocked, row[: len(row) // 2 * 2].reshape(-1, 2)]), axis=0)


def sums(stored: np.ndarray, pairs: np.ndarray, codes: np.ndarray = ANY) -> np.ndarray:
    """The largest |a₀·w₀ + a₁·w₁| that each pair can reach, int32 `[O, P]`.

    `stored` holds int8 codes `[O, K]` in any dtype; `codes` the largest code that each product's activation has,
    `[O or 1, K or 1]`: with measured ones the result holds for the data that they were measured on.
    """
    one = codes.size == 1  # for all: the sums of the weights are multiplied, half as wide
    products = stored.astype(np.int16) if one else stored.astype(np.int32) * codes.astype(np.int32)
    first, second = _sides(products, pairs)
    positive = np.maximum(first, 0) + np.maximum(second, 0)
    negative = np.minimum(first, 0) + np.minimum(second, 0)
    largest: np.ndarray = np.maximum(positive, -negative)
    return largest.astype(np.int32) * codes.astype(np.int32) if one else largest


def _sides(products: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second product of each pair, `[O, P]`; views where the pairs are all neighbours in turn."""
    if np.array_equal(pairs.ravel(), np.arange(pairs.size)):
        return products[:, : pairs.size : 2], products[:, 1 : pairs.size : 2]
    return products[:, pairs[:, 0]], products[:, pairs[:, 1]]


def saturates(stored: np.ndarray, pairs: np.ndarray, codes: np.ndarray = ANY) -> np.ndarray:
    """Which output channels hold a pair that does not fit, bool `[O]`. Shapes as in `sums`."""
    products = stored.shape[1]
    if codes.size == 1 and products > 2 and len(pairs) == products * (products - 1) // 2:  # every two: the largest two
        ends = np.partition(stored, (1, products - 2), axis=1).astype(np.int32)
        high, low = np.maximum(ends[:, -2:], 0).sum(axis=1), np.minimum(ends[:, :2], 0).sum(axis=1)
        every: np.ndarray = np.maximum(high, -low) * codes.item() > LIMIT
        return every
    found: np.ndarray = sums(stored, pairs, codes).max(axis=1, initial=0) > LIMIT
    return found


def fitted(stored: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """`stored` `[O, K]` with all pairs inside the limit for any input; same dtype, and the same where they were.

    Of a pair that reaches r > L both weights become trunc(w·L/r), or less where another pair asks for more. No
    shrinking makes another pair longer, so one visit is enough.
    """
    reached = sums(stored, pairs)
    row, pair = np.nonzero(reached > LIMIT)
    factor = np.ones(stored.shape)
    for side in (0, 1):
        np.minimum.at(factor, (row, pairs[pair, side]), LIMIT / reached[row, pair])
    shrunk: np.ndarray = np.trunc(stored * factor).astype(stored.dtype)
    return shrunk


def repair(rows: np.ndarray, pairs: np.ndarray, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many steps max |w| of each output channel should be, float32 `[O]`, and which could saturate, bool `[O]`.

    A channel that fits with 127 steps keeps them. A coarser grid makes all weights of a channel less exact, `fitted`
    only some: of LADDER (127 to 64 steps) each other channel gets what leaves the least Σ_k E[x_k²]·(s·q_k − w_k)²,
    where q is rounded and then fitted. `rows` are float weights `[O, K]`; `power` is E[x²] of each product's
    activation, or ones where it is unknown, `[O or 1, K or 1]`.
    """
    steps = np.full(len(rows), FULL_STEPS, np.float32)
    bound = np.abs(rows).max(axis=1, initial=0)[:, None]
    bound = np.where(bound > np.finfo(np.float32).tiny * FULL_STEPS, bound, 1)
    could = saturates(np.rint(rows * (FULL_STEPS / bound)), pairs)
    some = np.flatnonzero(could)
    rows, bound, power = rows[some], bound[some], power[some] if len(power) > 1 else power
    least = np.full(len(some), np.inf)
    for count in LADDER:
        stored = fitted(np.rint(rows * (count / bound)), pairs)
        damage = (power * (stored * (bound / count) - rows) ** 2).sum(axis=1)
        better = damage < least
        least[better], steps[some[better]] = damage[better], count
    return steps, could


def pairs_at_risk(stored: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of neighbours (2i, 2i+1) of int8 `stored` `[O, K]` that can leave 16 bits with any codes.

    Returns float32 `[P, K]`, each row with its two weights in their places, and the output channels int64 `[P]`; at
    most `most` of them, those first that can exceed furthest. A last weight without a neighbour always fits.
    """
    neighbours = np.arange(stored.shape[1] // 2 * 2).reshape(-1, 2)
    reached = sums(stored, neighbours)
    rows, places = np.nonzero(reached > LIMIT)
    order = np.argsort(-reached[rows, places], kind="stable")[:most]
    rows, places = rows[order], neighbours[places[order]]
    found = np.zeros((len(rows), stored.shape[1]), np.float32)
    np.put_along_axis(found, places, stored[rows[:, None], places], axis=1)
    return found, rows
