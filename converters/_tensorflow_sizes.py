"""How large a TensorFlow graph's tensors are, by TensorFlow's own shape inference: before anything of it is run.

A run that asks for more memory than there is ends the process in some operators, and is told after others have waited.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from edgerun import sandbox
from edgerun.errors import EdgerunError


def refuse_larger(graph: Any, functions: Iterable[Any] = ()) -> None:
    """Raise for a tensor that alone is more than this process may take, at batch 1 where a size is free.

    `graph` is a tf.Graph; `functions` are FunctionDefs that it holds, whose bodies are looked at too.
    """
    limit = sandbox.memory()
    for place, inside in (("graph", graph), *_bodies(graph, functions)):
        for operation in inside.get_operations():
            for value in operation.outputs:
                size = _least_bytes(value)
                if size > limit:
                    raise EdgerunError(
                        "the model computes a tensor that is larger than memory",
                        got=f"{operation.type} ({place}: {operation.name}) {value.shape}: {size / (1 << 30):.4g} GiB",
                        wanted=f"at most {limit / (1 << 30):.4g} GiB", do="--memory-cap allows more",
                    )  # fmt: skip


def _bodies(graph: Any, functions: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    from tensorflow.python.framework import function_def_to_graph  # type: ignore[import-untyped]

    for function in functions:
        try:
            with graph.as_default():
                body = function_def_to_graph.function_def_to_graph(function)
        except Exception:  # TensorFlow, which runs functions otherwise, has the last word on what it cannot read here
            continue
        yield function.signature.name, body


def _least_bytes(value: Any) -> int:
    """Bytes of a tensor whose free sizes are 1; 0 where even the rank is free."""
    if value.shape.rank is None:
        return 0
    size = int(value.dtype.size or 1)
    for dim in value.shape.as_list():
        size *= 1 if dim is None else dim
    return size
