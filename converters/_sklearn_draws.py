"""What a scikit-learn estimator and its conversion are compared on: rows near the training data, none on an edge.

A tree jumps where a feature meets a threshold, and two classes may tie. There the last bit of a float32 input decides,
and neither answer is wrong: such rows are left out, and how many is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgerun.converters._sklearn_features import Feature
from edgerun.passes import Feeds, Runner
from edgerun.runtime import TensorSpec

ROWS = 128  # of the largest batch
_POOL = 170  # rows drawn at a time
_POOLS = 5  # at most
_NUDGE = 2.0**-21  # relative: four rounding steps of float32
_STEADY = 1e-5  # of the largest answer: what parity allows


def feeds(
    specs: Sequence[TensorSpec], features: Sequence[Feature], exact: Runner, seed: int = 0
) -> tuple[tuple[Feeds, ...], str]:
    """Feeds for the estimator `exact`, and a line that says what they are.

    Three of 1, 128 and 2 rows; of a model whose batch is fixed, as many as fit into 128 rows, at most 16.
    """
    rng = np.random.default_rng(seed)
    fixed = specs[0].shape[0]
    sizes = [1, ROWS, 2] if isinstance(fixed, str) else [fixed] * min(16, max(1, ROWS // fixed))
    pools, masks = list[dict[str, np.ndarray]](), list[np.ndarray]()
    while len(pools) < _POOLS and sum(int(mask.sum()) for mask in masks) < sum(sizes):
        pools.append(draw(specs, features, rng, max(_POOL, sum(sizes) * 5 // 4)))
        masks.append(_steady(exact, pools[-1], rng, _numbers(specs, features)))
    pool = {name: np.concatenate([drawn[name] for drawn in pools]) for name in pools[0]}
    steady = np.concatenate(masks)
    total, left = len(steady), int((~steady).sum())
    enough = total - left >= sum(sizes)
    keep = np.flatnonzero(steady) if enough else np.arange(total)
    ends = np.cumsum([0, *sizes])
    found = tuple(
        {name: array[keep[a:b]] for name, array in pool.items()} for a, b in zip(ends, ends[1:], strict=False)
    )
    said = f"random, seed {seed}, where the estimator's training data lay: {sum(sizes)} rows"
    if left:
        said += f"; {left} of {total} drawn rows are ties or hang on the last bit"
        said += " and were left out" if enough else ", too many to leave them out"
    return found, said


def draw(
    specs: Sequence[TensorSpec], features: Sequence[Feature], rng: np.random.Generator, rows: int
) -> dict[str, np.ndarray]:
    """`rows` random rows as feeds: all features in one input, or each in its own."""
    columns = [feature.draw(rng, rows) for feature in features]
    if len(specs) == 1:
        return {specs[0].name: np.stack(columns, axis=1)}
    return {spec.name: column[:, None] for spec, column in zip(specs, columns, strict=True)}


def _numbers(specs: Sequence[TensorSpec], features: Sequence[Feature]) -> dict[str, np.ndarray]:
    """bool [columns of the input]: which are numbers, and no names of categories."""
    numbers = np.array([not feature.values for feature in features])
    if len(specs) == 1:
        return {specs[0].name: numbers}
    return {spec.name: numbers[i : i + 1] for i, spec in enumerate(specs)}


def _steady(
    exact: Runner, pool: Mapping[str, np.ndarray], rng: np.random.Generator, numbers: Mapping[str, np.ndarray]
) -> np.ndarray:
    """bool [rows]: does the answer stay when every number moves by a few rounding steps, and is no tie?"""
    answers = exact(pool)
    steady = np.ones(len(next(iter(pool.values()))), bool)
    for _ in range(2):
        moved = exact({name: _moved(array, rng, numbers[name]) for name, array in pool.items()})
        for name, answer in answers.items():
            allowed = _STEADY * np.abs(answer).max(initial=0.0) if answer.dtype.kind == "f" else 0
            steady &= (np.abs(answer - moved[name]) <= allowed).reshape(len(steady), -1).all(axis=1)
    for name in ("probabilities", "scores"):
        if "label" in answers and name in answers and answers[name].shape[1] > 1:
            second, first = np.sort(answers[name], axis=1)[:, -2:].T
            steady &= first - second > _STEADY * np.abs(answers[name]).max(initial=0.0)
    return steady


def _moved(array: np.ndarray, rng: np.random.Generator, numbers: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    nudge = np.where(numbers, rng.choice([-_NUDGE, _NUDGE], array.shape), 0.0)
    moved: np.ndarray = (array * (1 + nudge)).astype(array.dtype)
    return moved
