"""What a target reads, and what it says of a node that it does not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgerun.model import Model


@dataclass(frozen=True)
class Issue:
    """A node that will not run, or not natively, on a target, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """The newest IR version and default-domain opset that a target's installed version reads."""

    ir_version: int
    opset: int

    def exceeded(self, model: Model, where: str = "here") -> list[Issue]:
        """What of `model` is too new, as issues of no single node; `where` these limits are."""
        found, opset = [], model.ir.opset_imports.get("", 0)
        if model.ir.ir_version > self.ir_version:
            found.append(f"IR version {model.ir.ir_version} is newer than {self.ir_version}, the newest read {where}")
        if opset > self.opset:
            found.append(f"opset {opset} is newer than {self.opset}, the newest read {where}")
        return [Issue("", "", reason) for reason in found]
