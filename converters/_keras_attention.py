"""Keras's attention layers: softmax(Q·Kᵀ·scale, masked)·V, with one head or several (Vaswani et al. 2017)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_activations import masked_scores, softmax_over
from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, layer, op
from edgerun.converters._keras_reductions import reduce
from edgerun.converters._layout import Value
from edgerun.errors import Unsupported


@layer("MultiHeadAttention")
def _multi_head(graph: Graph, operation: Any, inputs: list[Value]) -> list[Value]:
    gate = getattr(operation, "_gate_dense", None) if operation._use_gate else None
    return _heads(graph, operation, gate, operation._inverse_sqrt_key_dim, operation._sliding_window, 1)


@layer("GroupedQueryAttention")
def _grouped(graph: Graph, operation: Any, inputs: list[Value]) -> list[Value]:
    gate = operation._gate_dense if operation.use_gate else None
    window = operation.sliding_window
    return _heads(graph, operation, gate, operation._inverse_sqrt_head_dim, window, operation.num_repeats)


def _heads(graph: Graph, operation: Any, gate: Any, scale: float, window: int | None, repeats: int) -> list[Value]:
    """Projections of query, key and value, attention by head, and the projection of the result."""
    told = graph.arguments
    query, value = told["query"], told["value"]
    key = told.get("key")
    key = value if key is None else key
    masks = [told.get(word) for word in ("query_mask", "value_mask", "key_mask", "attention_mask")]
    mask = _joint_mask(graph, masks, query, value, bool(told.get("use_causal_mask")), window)
    opening = None if gate is None else graph.walk.layer(gate, query)[0]
    denses = (operation._query_dense, operation._key_dense, operation._value_dense)
    q, k, v = (graph.walk.layer(dense, item)[0] for dense, item in zip(denses, (query, key, value), strict=True))
    if q.rank == 4:
        zeroed = bool(told.get("return_attention_scores")) or operation.dropout > 0
        found, weights = attend(graph, q, k, v, mask, scale, repeats, zeroed)
    else:
        found, weights = _over_axes(graph, operation, q, k, v, mask, scale)
    if opening is not None:
        found = apply(graph, "Mul", found, opening)
    result: Value = graph.walk.layer(operation._output_dense, found)[0]
    return [result, weights] if told.get("return_attention_scores") else [result]


def attend(
    graph: Graph, q: Value, k: Value, v: Value, mask: Value | None, scale: float, repeats: int = 1, zeroed: bool = False
) -> tuple[Value, Value]:
    """[B, T, N, H] from q [B, T, N, H], k and v [B, S, N/repeats, H], and the weights [B, N, T, S].

    `mask` is boolean and spreads to the weights' shape; one of rank 3 is for all heads. Where it holds nothing of a
    row, the weights are even, or where `zeroed` zero: Keras has a path for each.
    """
    across = [_turned(graph, item, perm) for item, perm in ((q, (0, 2, 1, 3)), (k, (0, 2, 3, 1)), (v, (0, 2, 1, 3)))]
    if repeats > 1:
        heads = graph.ints(np.repeat(np.arange(int(k.shape[2] or 0)), repeats).tolist(), "heads")
        for index in (1, 2):
            name = graph.node("Gather", [across[index].name, heads], axis=1)
            across[index] = replace(across[index], name=name)
    product = graph.node("MatMul", [across[0].name, across[1].name])
    scores = Value(product, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    scores = apply(graph, "Mul", scores, float(scale))
    mask = _with_axes(graph, mask, [1]) if mask is not None and mask.rank == 3 else mask
    weights = softmax_over(graph, scores if mask is None else masked_scores(graph, scores, mask), [3])
    if mask is not None and zeroed:
        weights = apply(graph, "Where", mask, weights, 0.0)
    made = Value(graph.node("MatMul", [weights.name, across[2].name]), (*scores.shape[:3], v.shape[3]))
    return _turned(graph, made, (0, 2, 1, 3)), weights


def _over_axes(
    graph: Graph, operation: Any, q: Value, k: Value, v: Value, mask: Value | None, scale: float
) -> tuple[Value, Value]:
    """Attention over other axes than one, by Keras's own einsum equations."""
    axes = len(operation._attention_axes)
    q = apply(graph, "Mul", q, float(scale))
    shape: tuple[int | None, ...] = (None,) * operation._softmax.axis[0] + (None,) * axes
    product = graph.node("Einsum", [k.name, q.name], equation=operation._dot_product_equation)
    scores = Value(product, (None,) * len(operation._dot_product_equation.split("->")[1]) or shape)
    across = [axis % scores.rank for axis in operation._softmax.axis]
    if mask is None:
        weights = softmax_over(graph, scores, across)
    else:
        front = mask.rank - 2 * axes
        mask = _with_axes(graph, mask, list(range(front, front + scores.rank - mask.rank)))
        weights = softmax_over(graph, masked_scores(graph, scores, mask), across)
        weights = apply(graph, "Where", mask, weights, 0.0)
    made = graph.node("Einsum", [weights.name, v.name], equation=operation._combine_equation)
    return Value(made, (*q.shape[:-1], v.shape[-1])), weights


def _joint_mask(
    graph: Graph, masks: list[Value | None], query: Value, value: Value, causal: bool, window: int | None
) -> Value | None:
    """All masks in one, [B or 1, T or 1, S]: those of steps, that of pairs, the causal one and the sliding window."""
    of_query, of_value, of_key, of_pairs = masks
    parts = [] if of_query is None else [_with_axes(graph, graph.cast(of_query, "bool"), [2])]
    parts += [_with_axes(graph, graph.cast(m, "bool"), [1]) for m in (of_value, of_key) if m is not None]
    parts += [graph.cast(graph.plain(of_pairs), "bool")] if of_pairs is not None else []
    if causal:
        parts.append(_band(graph, query, value, None, 0))
    if window is not None:
        parts.append(_band(graph, query, value, window - 1, window - 1))
    found = parts[0] if parts else None
    for part in parts[1:]:
        found = apply(graph, "And", found, part)
    return found


def _band(graph: Graph, query: Value, value: Value, below: int | None, above: int) -> Value:
    """[1, T, S]: step s is at most `below` before t (None: any) and `above` after it."""
    rows, columns = query.shape[1], value.shape[1]
    if rows is not None and columns is not None:
        gap = np.arange(columns)[None, :] - np.arange(rows)[:, None]
        held = (gap <= above) & (gap >= -below if below is not None else True)
        return Value(graph.const(held[None], "band"), (1, rows, columns), "bool")
    sizes = [_size(graph, item, 1) for item in (query, value)]
    shape = graph.node("Concat", [graph.ints([1], "one"), *sizes], axis=0)
    name = graph.node("Expand", [graph.const(np.int32(1), "one"), shape])
    name = graph.node("Trilu", [name, graph.const(np.int64(above), "above")], upper=0)
    if below is not None:
        name = graph.node("Trilu", [name, graph.const(np.int64(-below), "below")], upper=1)
    return graph.cast(Value(name, (1, rows, columns), "int32"), "bool")


def _size(graph: Graph, value: Value, axis: int) -> str:
    """One size of a value, int64 [1]."""
    shape = graph.node("Shape", [graph.plain(value).name])
    return graph.node("Gather", [shape, graph.ints([axis], "axis")], axis=0)


def _turned(graph: Graph, value: Value, perm: tuple[int, ...]) -> Value:
    value = graph.plain(value)
    name = graph.node("Transpose", [value.name], perm=list(perm))
    return replace(value, name=name, shape=tuple(value.shape[axis] for axis in perm), mask=None)


def _with_axes(graph: Graph, value: Value, axes: list[int]) -> Value:
    """The value with axes of one element put in."""
    value = graph.plain(value)
    shape = list(value.shape)
    for axis in axes:
        shape.insert(axis, 1)
    return replace(value, name=graph.node("Unsqueeze", [value.name, graph.ints(axes, "axes")]), shape=tuple(shape))


@op("DotProductAttention")
def _dot_product(
    graph: Graph,
    operation: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: Any = None,
) -> Value:
    q, k, v = (graph.value(item) for item in (query, key, value))
    if bias is not None or operation.attn_logits_soft_cap is not None:
        raise Unsupported("keras.ops: dot_product_attention with a bias or a soft cap is not supported")
    held = None if mask is None else graph.cast(graph.value(mask), "bool")
    if operation.is_causal:
        causal = _with_axes(graph, _band(graph, q, k, None, 0), [1])
        held = causal if held is None else apply(graph, "And", held, causal)
    size, heads = int(q.shape[-1] or 1), int(k.shape[2] or 1)
    repeats = int(q.shape[2] or 1) // heads if heads > 1 else 1
    return attend(graph, q, k, v, held, size**-0.5 if scale is None else float(scale), repeats)[0]


@layer("Attention", "AdditiveAttention")
def _one_head(graph: Graph, operation: Any, inputs: list[Value]) -> list[Value]:
    """Scores are Q·Kᵀ (Luong et al. 2015) or w·tanh(Q + K) (Bahdanau et al. 2015), each with a scale that is learnt."""
    told, items = graph.arguments, [graph.plain(item) for item in graph.arguments["inputs"]]
    query, value = items[:2]
    key = items[2] if len(items) > 2 else value
    masks = list(told.get("mask") or [None, None])
    if getattr(operation, "score_mode", "") == "dot" and type(operation).__name__ == "Attention":
        shape = (query.shape[0], query.shape[1], key.shape[1])
        scores = Value(graph.node("MatMul", [query.name, _turned(graph, key, (0, 2, 1)).name]), shape)
        scores = scores if operation.scale is None else apply(graph, "Mul", scores, operation.scale)
    else:
        pairs = apply(graph, "Add", _with_axes(graph, query, [2]), _with_axes(graph, key, [1]))
        scores = _additive(graph, operation, pairs)
    mask = _joint_mask(graph, [None, masks[1], None, None], query, value, bool(told.get("use_causal_mask")), None)
    if mask is not None:
        scores = apply(graph, "Where", mask, scores, apply(graph, "Sub", scores, 1e9))
    weights = softmax_over(graph, scores, [2])
    name = graph.node("MatMul", [weights.name, value.name])
    found = Value(name, (query.shape[0], query.shape[1], value.shape[2]))
    if masks[0] is not None:
        found = apply(graph, "Where", _with_axes(graph, masks[0], [2]), found, 0.0)
    return [found, weights] if told.get("return_attention_scores") else [found]


def _additive(graph: Graph, operation: Any, pairs: Value) -> Value:
    if type(operation).__name__ == "AdditiveAttention":
        parts = apply(graph, "Tanh", pairs)
        parts = parts if operation.scale is None else apply(graph, "Mul", parts, operation.scale)
        return reduce(graph, "ReduceSum", parts, [3], False)
    pairs = pairs if operation.scale is None else apply(graph, "Mul", pairs, operation.scale)
    scores = reduce(graph, "ReduceSum", apply(graph, "Tanh", pairs), [3], False)
    return apply(graph, "Mul", scores, operation.concat_score_weight)
