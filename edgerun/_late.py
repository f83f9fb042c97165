"""Modules that are loaded when something in them is first used, and objects that garbage is never looked for in."""

# Others import these modules for what they may never need; the objects stay. For processes that are edgerun's own (the
# command line, the limited child): a process that imports edgerun keeps its imports as they are.

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# onnx_ir computes with symbolic sizes by sympy, whose import takes three times as long as its own.
ARITHMETIC = ("sympy", "onnx_ir._symbolic_shapes")
GRAPHS = ("onnx", "onnx_ir", "onnxruntime")


class _Late(MetaPathFinder):
    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname in self._names else None
        if found is not None and found.loader is not None:
            found.loader = importlib.util.LazyLoader(found.loader)
        return found


def load_late(names: Iterable[str] = ARITHMETIC) -> None:
    """From now on in this process: importing one of these modules loads it on the first use of an attribute."""
    sys.meta_path.insert(0, _Late(names))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """The collector rests meanwhile, and leaves alone for good what there is then: half a million objects that stay
    (a framework's, a model's layers) would be gone through again and again while they are made."""
    working = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if working:
            gc.enable()


def load_now(names: Iterable[str]) -> None:
    """Import modules that stay, `uncollected`, where they are installed: who then collects after every graph takes a
    third of the time."""
    with uncollected(), contextlib.suppress(ImportError):
        for name in names:
            importlib.import_module(name)


def end_at_once() -> None:
    """When this process ends, the collector leaves what is left alone: the interpreter would let it go through all of
    that several times, which takes as long as half a framework's import."""
    atexit.register(gc.freeze)
