"""What a device needs: engines, sessions and tensor specs, on numpy and the standard library alone."""

from edgerun.runtime.engine import Engine, Options
from edgerun.runtime.session import Session
from edgerun.runtime.spec import TensorSpec

__all__ = ["Engine", "Options", "Session", "TensorSpec"]
