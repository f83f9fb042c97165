"""edgerun: edge inference runtime and model compressor.

The verbs are loaded on first use, so that `import edgerun` imports no framework.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
_PUBLIC = {
    "convert": "edgerun.verbs.convert",
    "compress": "edgerun.verbs.compress",
    "compile": "edgerun.verbs.compile",
    "load": "edgerun.verbs.load",
    "compare": "edgerun.verbs.compare",
    "evaluate": "edgerun.verbs.evaluate",
    "benchmark": "edgerun.verbs.benchmark",
    "inspect": "edgerun.verbs.inspect",
    "Model": "edgerun.model",
    "TensorSpec": "edgerun.runtime",
    "Session": "edgerun.runtime",
    "Engine": "edgerun.runtime",
    "Options": "edgerun.runtime",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgerun' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
