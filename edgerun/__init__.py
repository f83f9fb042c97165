"""edgerun: edge inference runtime and model compressor.

The verbs are loaded on first use, so that `import edgerun` imports no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerun.errors import EdgerunError, GateFailed, Unsupported
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
    "EdgerunError", "Engine", "GateFailed", "Model", "Options", "Session", "TensorSpec", "Unsupported", "__version__",
    "benchmark", "check", "compare", "compile", "compress", "convert", "evaluate", "inspect", "load", "predict", "warm",
    "why_slow", "why_wrong",
]  # fmt: skip
_PLACES = {
    "Model": "model",
    **dict.fromkeys(("Engine", "Options", "Session", "TensorSpec"), "runtime"),
    **dict.fromkeys(("EdgerunError", "GateFailed", "Unsupported"), "errors"),
}  # and of a verb, its own file


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgerun' has no attribute {name!r}")
    module = _module(name)
    try:
        return getattr(importlib.import_module(f"edgerun.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != f"edgerun.{module}":
            raise
        from edgerun import distribution

        raise distribution.absent(f"edgerun.{name}") from None


def __dir__() -> list[str]:
    """What is there and what comes when asked for; not what the device's install lacks: completion reads each name."""
    from edgerun import distribution

    later = {name for name in __all__ if name not in globals() and not distribution.lacks(_module(name))}
    return sorted({*globals(), *later})


def _module(name: str) -> str:
    return _PLACES.get(name, f"verbs.{name}")
