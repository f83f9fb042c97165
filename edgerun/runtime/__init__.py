"""What a device needs: engines, sessions and tensor specs, on numpy and the standard library alone."""

from edgerun.runtime.engine import Engine, Options, SelfCheck
from edgerun.runtime.session import Session
from edgerun.runtime.spec import TensorSpec

__all__ = ["Engine", "Options", "SelfCheck", "Session", "TensorSpec"]
