"""A PyTorch module in float64 without a second copy of its weights: every operator gets what it reads, as it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgerun.converters._torch_call import Call
from edgerun.passes import Feeds

EXACT = frozenset({"aten::embedding", "aten::index_select", "aten::t", "aten::transpose"})  # they move values alone


def twin(call: Call) -> Call:
    """A call of the same module whose operators compute in float64. Its runs raise TypeError where one writes into a
    float32 tensor: that is a weight or a buffer, and it would change."""
    import torch
    from torch.utils import _pytree as tree
    from torch.utils._python_dispatch import TorchDispatchMode

    def widened(value: torch.Tensor) -> torch.Tensor:
        return value.double() if value.dtype in (torch.float32, torch.float16, torch.bfloat16) else value

    class Double(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            given = args, dict(kwargs or {})
            if func._schema.name in EXACT:
                return func(*given[0], **given[1])
            wide = tree.tree_map_only(torch.Tensor, widened, given)
            pairs = zip(tree.tree_leaves(given), tree.tree_leaves(wide), strict=True)
            if func._schema.is_mutable and any(before is not after for before, after in pairs):
                raise TypeError(f"{func} writes into float32")
            return func(*wide[0], **wide[1])

    class Wide(Call):
        def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
            with Double():  # type: ignore[no-untyped-call]
                return super().run(feeds)

    return Wide(call.module, call.specs, call.positional, double=True)
