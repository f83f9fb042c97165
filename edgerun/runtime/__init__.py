"""What a device needs: engines, sessions and tensor specs, on numpy and the standard library alone."""

import importlib
from typing import TYPE_CHECKING, Any

from edgerun.runtime.engine import Engine, Options
from edgerun.runtime.session import Session
from edgerun.runtime.spec import TensorSpec

if TYPE_CHECKING:
    from edgerun.compat.inference_session import InferenceSession
    from edgerun.runtime.selfcheck import SelfCheck
    from edgerun.runtime.swap import HotSwapSession

__all__ = ["Engine", "HotSwapSession", "InferenceSession", "Options", "SelfCheck", "Session", "TensorSpec"]
# Looked up when they are asked for. InferenceSession opens models, which is the verbs' work, above this package; who
# opens one needs neither of the others.
_LATER = {
    "HotSwapSession": "edgerun.runtime.swap",
    "InferenceSession": "edgerun.compat.inference_session",
    "SelfCheck": "edgerun.runtime.selfcheck",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'edgerun.runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
