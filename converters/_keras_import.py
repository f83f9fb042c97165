"""Importing Keras without what it takes along for other purposes: that takes longer than Keras itself."""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any

from edgerun import _late

# Keras goes on without them: it has wrappers for one, reads data of another, tells a server of epochs by the third.
_WRAPPED = ("sklearn", "pandas", "requests")


def imported() -> None:
    """Import Keras, on torch unless KERAS_BACKEND names another backend; nothing happens where it is imported already.

    Its functions are not told to torch's compiler, which nothing here calls: asking for it to be left out of them
    would load the whole of it.
    """
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if "keras" in sys.modules:
        return
    with _late.uncollected():
        _import()


def _import() -> None:
    absent: dict[str, Any] = {name: None for name in _WRAPPED}
    if os.environ["KERAS_BACKEND"] == "torch":
        importlib.import_module("torch")  # first, and whole
        absent["torch._dynamo"] = _Compiler("torch._dynamo")
    absent = {name: module for name, module in absent.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        importlib.import_module("keras")
    finally:
        for name in absent:
            del sys.modules[name]


class _Compiler(types.ModuleType):
    """Stands for torch's compiler while Keras is imported: leaves functions as they are."""

    @staticmethod
    def disable(function: Any = None, **_: Any) -> Any:
        """The function, or what decorates one and gives it back."""
        return function if function is not None else lambda decorated: decorated
