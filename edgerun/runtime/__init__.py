"""What a device needs: engines, sessions and tensor specs, on numpy and the standard library alone."""

from edgerun.runtime.engine import Engine, Options, SelfCheck
from edgerun.runtime.session import Session
from edgerun.runtime.spec import TensorSpec
from edgerun.runtime.swap import HotSwapSession

__all__ = ["Engine", "HotSwapSession", "Options", "SelfCheck", "Session", "TensorSpec"]
