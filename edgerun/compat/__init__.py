"""Doors in the shape of other tools, so that a script changes its import and nothing else.

    from edgerun.compat.onnxruntime import CalibrationDataReader, QuantType, quantize_static
    from edgerun.compat import nncf

What edgerun does in its own way is said in the functions' docstrings; what it cannot do is refused, never ignored.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerun.compat import nncf
    from edgerun.compat.nncf import quantize as nncf_quantize
    from edgerun.compat.onnxruntime import quantize_static

__all__ = ["nncf", "nncf_quantize", "quantize_static"]


def __getattr__(name: str) -> Any:
    """The doors, on first use: a device has InferenceSession alone."""
    if name not in __all__:
        raise AttributeError(f"module 'edgerun.compat' has no attribute {name!r}")
    if name == "nncf":
        return importlib.import_module("edgerun.compat.nncf")
    door = ("nncf", "quantize") if name == "nncf_quantize" else ("onnxruntime", name)
    return getattr(importlib.import_module(f"edgerun.compat.{door[0]}"), door[1])
