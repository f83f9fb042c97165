"""edgerun: edge inference runtime and model compressor.

The verbs are loaded on first use, so that `import edgerun` imports no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.runtime import Engine, Options, Session, TensorSpec
    from edgerun.verbs.benchmark import benchmark
    from edgerun.verbs.check import check
    from edgerun.verbs.compare import compare
    from edgerun.verbs.compile import compile
    from edgerun.verbs.compress import compress
    from edgerun.verbs.convert import convert
    from edgerun.verbs.evaluate import evaluate
    from edgerun.verbs.inspect import inspect
    from edgerun.verbs.load import load
    from edgerun.verbs.predict import predict
    from edgerun.verbs.warm import warm
    from edgerun.verbs.why_slow import why_slow
    from edgerun.verbs.why_wrong import why_wrong

__version__ = "0.1.0"
__all__ = [
    "Engine", "Model", "Options", "Session", "TensorSpec", "__version__", "benchmark", "check", "compare", "compile",
    "compress", "convert", "evaluate", "inspect", "load", "predict", "warm", "why_slow", "why_wrong",
]  # fmt: skip
_RUNTIME = ("Engine", "Options", "Session", "TensorSpec")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgerun' has no attribute {name!r}")
    module = "model" if name == "Model" else "runtime" if name in _RUNTIME else f"verbs.{name}"
    try:
        return getattr(importlib.import_module(f"edgerun.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != f"edgerun.{module}":
            raise
        from edgerun import distribution

        raise distribution.absent(f"edgerun.{name}") from None
