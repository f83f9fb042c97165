"""A mean of what differs from batch to batch, and as much of it as is sure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Running:
    """The weighted mean of arrays of one shape, float32, their weighted squares about it, and how many there were."""

    mean: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    weight: int = 0
    count: int = 0

    def with_(self, array: np.ndarray, weight: int) -> Running:
        """One array more (Welford 1962, as West 1979 weighs it)."""
        total = self.weight + weight
        away = array - self.mean
        mean = self.mean + away * np.float32(weight / total)
        return Running(mean, self.squares + np.float32(weight) * away * (array - mean), total, self.count + 1)

    def shrunk(self) -> np.ndarray:
        """The mean, less what chance alone may have made of it: m·max(0, 1 − s²/m²), s its standard error.

        The positive-part James-Stein estimate of each element on its own; the mean itself where one array was seen.
        """
        mean = np.asarray(self.mean, np.float32)
        if self.count < 2:
            return mean
        error = np.asarray(self.squares, np.float32) / np.float32(self.weight * (self.count - 1))
        tiny = np.finfo(np.float32).tiny
        return mean * np.maximum(1 - error / np.maximum(mean**2, tiny), 0).astype(np.float32)
