"""What a device needs: engines, sessions and tensor specs, on numpy and the standard library alone."""

import importlib
from typing import TYPE_CHECKING, Any

from edgerun.runtime.engine import Engine, Options, SelfCheck
from edgerun.runtime.session import Session
from edgerun.runtime.spec import TensorSpec
from edgerun.runtime.swap import HotSwapSession

if TYPE_CHECKING:
    from edgerun.compat.inference_session import InferenceSession

__all__ = ["Engine", "HotSwapSession", "InferenceSession", "Options", "SelfCheck", "Session", "TensorSpec"]


def __getattr__(name: str) -> Any:
    """InferenceSession opens models, which is the verbs' work, above this package: it is looked up when asked for."""
    if name != "InferenceSession":
        raise AttributeError(f"module 'edgerun.runtime' has no attribute {name!r}")
    return importlib.import_module("edgerun.compat.inference_session").InferenceSession
