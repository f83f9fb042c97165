"""The dimensions of outputs as they were seen: exporters write the example's size, or a name of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.converters import _normalize
from edgerun.passes import Feeds
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx

Seen = Sequence[tuple[Feeds, Mapping[str, np.ndarray]]]


def observed(proto: onnx.ModelProto, specs: Sequence[TensorSpec], seen: Seen) -> onnx.ModelProto:
    """The model with dimensions of outputs corrected where two runs contradict what it says.

    A size that changed becomes symbolic, one that stayed as the input's is named as the user named it. A name that the
    exporter made up is replaced by the user's where the sizes agree in every run. Where a size was wrong, those of the
    values within may be too: they are inferred again.
    """
    known = [_sizes(specs, feeds) for feeds, _ in seen]
    users = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
    wrong = False
    for output in proto.graph.output:
        shapes = [results[output.name].shape for _, results in seen]
        for axis, dim in enumerate(output.type.tensor_type.shape.dim):
            sizes = [shape[axis] for shape in shapes]
            names = [name for name in sorted(users) if all(k[name] == n for k, n in zip(known, sizes, strict=True))]
            names = names if len({k[n] for k in known for n in names}) > 1 else []  # one size proves no name
            if dim.HasField("dim_value") and any(n != dim.dim_value for n in sizes):
                dim.dim_param, wrong = names[0] if names else f"{output.name}_{axis}", True
            elif not dim.HasField("dim_value") and not _written(dim.dim_param, users):
                dim.dim_param = names[0] if names else f"{output.name}_{axis}"
    if wrong:
        del proto.graph.value_info[:]
        return _normalize.infer_shapes(proto)
    return proto


def _sizes(specs: Sequence[TensorSpec], feeds: Feeds) -> dict[str, int]:
    pairs = ((dim, n) for spec in specs for dim, n in zip(spec.shape, feeds[spec.name].shape, strict=True))
    return {dim: n for dim, n in pairs if isinstance(dim, str)}


def _written(text: str, users: set[str]) -> bool:
    """Is it a name of the user's, or arithmetic on such?"""
    import re

    words = set(re.findall(r"[A-Za-z_]\w*", text))
    return bool(words) and words <= users | {"Max", "Min", "floor", "ceil", "ceiling", "Mod", "Abs"}
