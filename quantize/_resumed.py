"""Sums over the calibration data that a killed run goes on with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from edgerun.passes import Request

T = TypeVar("T")
log = logging.getLogger("edgerun")


def about(request: Request) -> list[str]:
    """What is found out with calibration data depends on beside what a checkpoint is about: that data, if any."""
    return [] if request.calibration is None else [request.calibration.digest]


def part(request: Request, what: str) -> str:
    """The part of a checkpoint that holds `what` was found with calibration data."""
    return " ".join([what, *about(request)])


def claim(request: Request, what: str) -> None:
    """What is kept of `Sums` goes when the run ends well, whether or not it needs them."""
    if request.checkpoint is not None:
        request.checkpoint.claim(part(request, what))


class Sums:
    """Arrays by name, `found`, that every batch adds to: `what` they are tells the user, and `group` which of them.

    Only those of one group are kept, the newest. Who adds makes new arrays: old ones may be read-only.
    """

    def __init__(self, request: Request, what: str, group: Iterable[str]) -> None:
        self.found: dict[str, np.ndarray] = {}
        self._checkpoint, self._batches = request.checkpoint, 0
        self._group = np.frombuffer(json.dumps(list(group)).encode(), np.uint8)
        if self._checkpoint is None:
            return
        self._part = part(request, what)
        state = self._checkpoint.recall(self._part)
        if state is not None and np.array_equal(state.pop("group"), self._group):
            self._batches, self.found = int(state.pop("batches")), {key[1:]: array for key, array in state.items()}
            log.info("resuming: %d batches are known, for %s", self._batches, what)

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches that are not in the sums yet; each is to be added before the next one is asked for."""
        for number, batch in enumerate(batches, 1):
            if number > self._batches:
                yield batch
                self._batches = number
                self._keep()
        self._keep(whole=True)

    def _keep(self, *, whole: bool = False) -> None:
        if self._checkpoint is not None:
            self._checkpoint.offer(self._part, self._state, whole=whole)

    def _state(self) -> dict[str, np.ndarray]:
        found = {f"/{name}": array for name, array in self.found.items()}
        return found | {"group": self._group, "batches": np.array(self._batches)}
