"""Checkpoints: what a long run knows so far, in the cache, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edgerun import cache
from edgerun.errors import EdgerunError

PATIENCE = 30.0  # seconds in which nothing is written: a run that ends before would only have lost time
LEAST, SHARE = 10.0, 0.05  # seconds between two writings, and the most of the time that they may take
log = logging.getLogger("edgerun")
Arrays = Mapping[str, np.ndarray]


class Checkpoint:
    """Parts of a run's state, each a mapping of arrays, under all that they depend on.

    `about` are JSON values; a part is found again by a run that is about the same, to the letter, and never else.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._about, self._used = dict(about), set[str]()
        self._due, self._writes = time.monotonic() + PATIENCE, True

    def add(self, **about: Any) -> None:
        """What else the parts depend on."""
        self._about |= about

    def asked(self, part: str) -> bool:
        """Whether this run has asked for the part before: then what is known of it may be its own."""
        return cache.key(self._text(part)) in self._used

    def claim(self, part: str) -> None:
        """Have `clear` remove a part that this run may not ask for, because it goes on behind it."""
        self._used.add(cache.key(self._text(part)))

    def recall(self, part: str) -> dict[str, np.ndarray] | None:
        """A part as it was offered, or None. What is damaged is told and not used."""
        name, text = self._name(part)
        try:
            data = cache.read("compress", name)
            return None if data is None else _unpacked(data, text)
        except (EdgerunError, ValueError, KeyError, TypeError) as error:
            log.warning("a checkpoint is not used: %s", error)
            return None

    def offer(self, part: str, state: Callable[[], Arrays], *, whole: bool = False) -> None:
        """Keep `state()` when it is time to; of a `whole` part, which will not change any more, as soon as may be."""
        begun = time.monotonic()
        if not self._writes or begun < self._due - (LEAST if whole else 0.0):
            return
        name, text = self._name(part)
        try:
            cache.write("compress", name, _packed(state(), text))
        except EdgerunError as error:
            self._writes = False
            log.warning("no checkpoints: %s", error)
        spent = time.monotonic() - begun
        self._due = begun + spent + max(LEAST, spent / SHARE)

    def clear(self) -> None:
        """The run has ended well: nothing of it is needed any more."""
        for name in self._used:
            cache.remove("compress", name)

    def _name(self, part: str) -> tuple[str, str]:
        text = self._text(part)
        name = cache.key(text)
        self._used.add(name)
        return name, text

    def _text(self, part: str) -> str:
        return json.dumps({**self._about, "part": part}, sort_keys=True)


class Memo:
    """Answers by name, each found once: by this run, or by the killed one that it goes on from.

    `what` names them to the user; `about` is what they depend on beside that of the `checkpoint`.
    """

    def __init__(self, checkpoint: Checkpoint | None, what: str, *about: str) -> None:
        self._checkpoint, self._part = checkpoint, " ".join([what, *about])
        own = checkpoint is not None and checkpoint.asked(self._part)
        self._known = dict(checkpoint.recall(self._part) or {}) if checkpoint is not None else {}
        if self._known and not own:
            log.info("resuming: %d %s are known", len(self._known), what)

    def get(self, name: str, find: Callable[[], np.ndarray | float]) -> np.ndarray:
        """The answer `name`, by `find` where it is not known."""
        if name not in self._known:
            self._known[name] = np.asarray(find())
            if self._checkpoint is not None:
                self._checkpoint.offer(self._part, lambda: dict(self._known))
        return self._known[name]


def _packed(arrays: Arrays, about: str) -> Iterator[bytes]:
    """The arrays one after the other behind a line of JSON that says what they are."""
    told = {"about": about, "arrays": [[name, a.dtype.str, a.shape] for name, a in arrays.items()]}
    yield json.dumps(told).encode() + b"\n"
    yield from (array.tobytes() for array in arrays.values())


def _unpacked(data: bytes, about: str) -> dict[str, np.ndarray]:
    """The arrays again. Raises ValueError, KeyError or TypeError when the bytes are something else."""
    start = data.index(b"\n") + 1
    told, found = json.loads(data[:start]), dict[str, np.ndarray]()
    if told["about"] != about:
        raise ValueError("it belongs to another run")
    for name, dtype, shape in told["arrays"]:
        kind = np.dtype(dtype)
        if kind.kind not in "fiub":
            raise ValueError(f"it holds {kind}")
        count = int(np.prod(shape))
        found[name] = np.frombuffer(data, kind, count, start).reshape(shape)
        start += count * kind.itemsize
    return found
