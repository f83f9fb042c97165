"""Layers of a Q/DQ model, whoever made it, whose sums are cut off at 16 bits on a CPU without dot products."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgerun.errors import GateFailed

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.passes import Quantization


@dataclass(frozen=True)
class Saturating:
    """A layer of which `channels` output channels, of `total`, saturate for some input."""

    node: str
    op: str
    channels: int
    total: int


def saturating(model: Model, rules: Quantization, in_float: Collection[str] = ()) -> tuple[Saturating, ...]:
    """Where the rules say that sums of two products have 16 bits (`reduced_range`): the layers that can saturate, by
    their stored weights; none of those that run in float."""
    if not rules.reduced_range:
        return ()
    from edgerun.quantize.graphs import saturation

    found = (
        Saturating(str(node.name or node.outputs[0].name), node.op_type, channels, total)
        for node, channels, total in saturation.layers(model.ir.graph)
    )
    return tuple(layer for layer in found if layer.channels and layer.node not in in_float)


def told(found: Sequence[Saturating], where: str) -> str:
    """All of them in one line."""
    channels, total = sum(layer.channels for layer in found), sum(layer.total for layer in found)
    layers = f"{len(found)} layers" if len(found) > 1 else "a layer"
    return f"{channels} of {total} output channels of {layers} can saturate on {where}"


def remedy(device: str | None, target: str) -> str:
    """What can be done about it."""
    to = f"--device {device}" if device is not None else f"--target {target}"
    return (
        f"edgerun compress FP32 {to} repairs them in the weights; where the INT8 model shall stay as it is otherwise, "
        f"edgerun why-wrong FP32 INT8 --data DATA --target {target} --saturating --fix NEW.onnx"
    )


def refuse(found: Sequence[Saturating], device: str | None, target: str) -> None:
    """Raise GateFailed for layers that can saturate."""
    if found:
        names = ", ".join(f"{layer.node} ({layer.channels} of {layer.total})" for layer in found[:10])
        more = f", and {len(found) - 10} more" if len(found) > 10 else ""
        raise GateFailed(told(found, device or target), got=names + more, do=remedy(device, target))
