"""Known rewrites of a PyTorch source: the same results from operators that exporters know.

Each changes a copy, and counts only if the copy computes what the source does; the proof at the end compares with the
source as it was.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgerun.converters._torch_call import Call
from edgerun.passes import Feeds

CLOSE = 1e-4  # largest error of a rewritten source, relative to the largest output


def rewritten(call: Call, example: Feeds) -> Iterator[tuple[str, Call]]:
    """The call on a rewritten copy of its module, for every rewrite that finds something, and for all together."""
    wanted = call.run(example)
    useful: list[tuple[str, Callable[[Any], bool]]] = []
    for name, rewrite in REWRITES:
        if (twin := _twin(call, [rewrite])) is not None and _same(twin, example, wanted):
            useful.append((name, rewrite))
            yield name, twin
    if len(useful) > 1:
        twin = _twin(call, [rewrite for _, rewrite in useful])
        if twin is not None and _same(twin, example, wanted):
            yield ", ".join(name for name, _ in useful), twin


def _twin(call: Call, rewrites: list[Callable[[Any], bool]]) -> Call | None:
    """The call on a changed copy; None where nothing is to change, or the module cannot be copied."""
    try:
        module = copy.deepcopy(call.module)
        if not all([rewrite(module) for rewrite in rewrites]):
            return None
    except Exception:  # a module may forbid copies, or hold something that cannot be
        return None
    return Call(module, call.specs, call.positional)


def _same(twin: Call, example: Feeds, wanted: dict[str, np.ndarray]) -> bool:
    try:
        found = twin.run(example)
    except Exception:  # the rewrite does not fit this source
        return False
    return found.keys() == wanted.keys() and all(
        value.shape == found[name].shape
        and np.abs(np.subtract(value, found[name], dtype=np.float64)).max(initial=0)
        <= CLOSE * max(1e-30, np.abs(value.astype(np.float64)).max(initial=0))
        for name, value in wanted.items()
    )


def plain_weights(module: Any) -> bool:
    """Weights that are computed from others (weight and spectral normalization) are computed once."""
    from torch.nn.utils import parametrize

    found = False
    for part in module.modules():
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
            found = True
        for key, hook in list(part._forward_pre_hooks.items()):
            if type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
                hook.remove(part)
                del part._forward_pre_hooks[key]
                found = True
    return found


def eager_attention(module: Any) -> bool:
    """Attention of `transformers` as products and a softmax, instead of one fused call."""
    parts = [
        p for p in module.modules() if getattr(getattr(p, "config", None), "_attn_implementation", "eager") != "eager"
    ]
    for part in parts:
        part.config._attn_implementation = "eager"
    return bool(parts)


def plain_transformer(module: Any) -> bool:
    """nn.TransformerEncoder without its fused path, which takes padded rows out and has no ONNX form."""
    from torch import nn

    parts = [p for p in module.modules() if isinstance(p, nn.TransformerEncoder) and p.enable_nested_tensor]
    for part in parts:
        part.enable_nested_tensor = part.use_nested_tensor = False
    return bool(parts)


def masks_as_given(module: Any) -> bool:
    """nn.Transformer's stacks without their look at the mask's values (is it causal?), which only chooses a kernel."""
    from torch import nn

    found = False
    for part in module.modules():
        hint = {nn.TransformerEncoder: "is_causal", nn.TransformerDecoder: "tgt_is_causal"}.get(type(part))
        if hint is not None:
            part.forward = _with(part.forward, hint)
            found = True
    return found


def _with(forward: Callable[..., Any], hint: str) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{**kwargs, hint: False})

    return call


REWRITES: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("weights computed once", plain_weights),
    ("eager attention", eager_attention),
    ("padded rows kept", plain_transformer),
    ("masks as given", masks_as_given),
)
