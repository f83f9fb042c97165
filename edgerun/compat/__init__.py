"""Doors in the shape of other tools, so that a script changes its import and nothing else.

    from edgerun.compat.onnxruntime import CalibrationDataReader, QuantType, quantize_static
    from edgerun.compat import nncf

What edgerun does in its own way is said in the functions' docstrings; what it cannot do is refused, never ignored.
"""

from __future__ import annotations

from edgerun.compat import nncf
from edgerun.compat.nncf import quantize as nncf_quantize
from edgerun.compat.onnxruntime import quantize_static

__all__ = ["nncf", "nncf_quantize", "quantize_static"]
