"""Reading SavedModel folders: the graph is looked at before TensorFlow runs anything of it.

A SavedModel is a program: its graph may hold operators that read and write files. Only what one signature needs is
taken out of it, and every operator there must be one that computes; then the variables are restored and the signature
runs in a session, as TensorFlow Serving does it. The object graph, with what it runs on loading, is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import _calls, guard, guard_source
from edgerun.converters._ort import first_line
from edgerun.converters._tensorflow_graph import Source, Tensor, tensor
from edgerun.converters._tensorflow_ops import called, node_of, reached, refuse
from edgerun.converters._tensorflow_sizes import refuse_larger
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.passes import Feeds

GRAPH = guard_source.SAVED_MODEL
_SERVE, _DEFAULT, _INIT = "serve", "serving_default", "__saved_model_init_op"
# What a checkpoint loader is made of; anything else behind the restoring operator is not run.
_LOADER = frozenset(
    "Assign AssignVariableOp Cast Const Identity IdentityN NoOp PartitionedCall Placeholder PlaceholderWithDefault "
    "Reshape Restore RestoreSlice RestoreV2 ShardedFilename StatefulPartitionedCall VarHandleOp Variable "
    "VariableV2".split()
)
_RESTORES = frozenset({"Restore", "RestoreSlice", "RestoreV2"})
_TOLD = frozenset({"", "Placeholder", "PlaceholderWithDefault", "VarHandleOp", "Variable", "VariableV2"})


def load(folder: Path, wanted: str = "") -> Source:
    """The signature `wanted`; without it `serving_default`, or the only one.

    Raises EdgerunError for damage or a graph that asks for more than to compute, Unsupported naming every operator
    without an ONNX form.
    """
    guard_source.check_folder(folder)
    meta = _meta_graph(folder)
    name, signature = _signature(meta, wanted)
    inputs = [tensor(key, info.name, info.dtype, info.tensor_shape) for key, info in _sorted(signature.inputs)]
    outputs = [tensor(key, info.name, info.dtype, info.tensor_shape) for key, info in _sorted(signature.outputs)]
    roots = [node_of(entry.at) for entry in (*inputs, *outputs)]
    _refuse_unending(meta.graph_def)
    refuse(reached(meta.graph_def, roots), f"the signature {name!r}")
    session = _session(folder, meta, roots)
    return Source(_frozen(session, roots), inputs, outputs, _runner(session, inputs, outputs))


def _refuse_unending(graph: Any) -> None:
    """TensorFlow unfolds functions, and a circle of them until its stack ends."""
    inside = {
        function.signature.name: [name for node in function.node_def for name in called(node) if name]
        for function in graph.library.function
    }
    if (found := _calls.unending(inside)) is not None:
        raise EdgerunError(found[0], got=found[1], do="get the model from who trained it")


def _sorted(entries: Any) -> list[tuple[str, Any]]:
    return sorted(entries.items())


def _meta_graph(folder: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2  # type: ignore[import-untyped]

    guard.check_file(folder / GRAPH)
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / GRAPH).read_bytes())
    except Exception as error:  # protobuf's DecodeError
        raise EdgerunError(f"{folder / GRAPH}: not a SavedModel, or a damaged one", got=first_line(error),
                           do="export or copy it again") from None  # fmt: skip
    found = [meta for meta in saved.meta_graphs if _SERVE in meta.meta_info_def.tags]
    if not found:
        tags = [list(meta.meta_info_def.tags) for meta in saved.meta_graphs]
        raise EdgerunError(f"{folder / GRAPH}: no graph for serving", got=f"graphs with the tags {tags}",
                           wanted="one tagged 'serve'", do="export it again with tf.saved_model.save")  # fmt: skip
    return found[0]


def _signature(meta: Any, wanted: str) -> tuple[str, Any]:
    known = {name: entry for name, entry in _sorted(meta.signature_def) if name != _INIT}
    name = wanted or (_DEFAULT if _DEFAULT in known or len(known) != 1 else next(iter(known)))
    if wanted and name not in known:
        raise unknown("signature", name, known)
    if name not in known:
        raise EdgerunError(
            "the SavedModel has no signature to convert" if not known else "which signature is meant is not clear",
            got=", ".join(known) or "no signature", wanted=f"{_DEFAULT!r}, or only one",
            do="name one: --signature NAME" if known
            else "export it with signatures=…, or a tf.function with an input_signature",
        )  # fmt: skip
    if not known[name].outputs:
        raise EdgerunError(f"the signature {name!r} has no output", do="export it with an output")
    return name, known[name]


def _session(folder: Path, meta: Any, roots: list[str]) -> Any:
    """A session over what the signature needs, its variables restored from the checkpoint."""
    import tensorflow as tf  # type: ignore[import-untyped]

    wanted = list(reached(meta.graph_def, roots))
    restore = ""
    if any(node.op in {"VarHandleOp", "Variable", "VariableV2"} for _, node in wanted):
        restore = node_of(meta.saver_def.restore_op_name)
        loader = list(reached(meta.graph_def, [restore, node_of(meta.saver_def.filename_tensor_name)]))
        _check_loader(meta.graph_def, loader)
        wanted += loader
        if not (folder / "variables" / "variables.index").is_file():
            raise EdgerunError(f"{folder}: the variables are missing", wanted="variables/variables.index and its data",
                               do="copy the whole folder")  # fmt: skip
    part, session = _part(meta.graph_def, wanted), tf.compat.v1.Session(graph=tf.Graph())
    try:
        with session.graph.as_default():
            tf.import_graph_def(part, name="")
        refuse_larger(session.graph, part.library.function)
        if restore:
            session.run(restore, {meta.saver_def.filename_tensor_name: str(folder / "variables" / "variables")})
    except EdgerunError:
        raise
    except Exception as error:  # TensorFlow's own errors, ValueError and KeyError for a graph that does not fit
        raise EdgerunError(f"{folder}: TensorFlow cannot load it", got=first_line(error),
                           do="export or copy it again") from None  # fmt: skip
    return session


def _part(graph: Any, wanted: Iterable[tuple[str, Any]]) -> Any:
    """A GraphDef of the wanted nodes and functions alone; no device, no colocation with what is left out."""
    part = type(graph)(versions=graph.versions)
    nodes = {node.name for place, node in wanted if not place}
    functions = {place for place, _ in wanted} | {name for _, node in wanted for name in called(node)}
    part.node.extend(node for node in graph.node if node.name in nodes)
    part.library.function.extend(f for f in graph.library.function if f.signature.name in functions)
    for node in (*part.node, *(node for function in part.library.function for node in function.node_def)):
        node.device = ""
        node.attr.pop("_class", None)
    for node in [node for node in part.node if node.op == "VarHandleOp"]:
        if (name := f"{node.name}/Read/ReadVariableOp") not in nodes:  # where freezing looks for the value
            read = part.node.add(name=name, op="ReadVariableOp", input=[node.name])
            read.attr["dtype"].CopyFrom(node.attr["dtype"])
    return part


def _check_loader(graph: Any, loader: Iterable[tuple[str, Any]]) -> None:
    """Raise unless the nodes that restore the variables only read the checkpoint that they are told, and assign."""
    functions = {function.signature.name: function for function in graph.library.function}
    places: dict[str, dict[str, Any]] = {}
    for place, node in loader:
        places.setdefault(place, {})[node.name] = node
        if node.op not in _LOADER and node.op not in functions:
            raise EdgerunError(
                "restoring the variables would do more than read the checkpoint; it is not run",
                got=f"{node.op} in {place or 'the graph'}", do="get the model from who trained it",
            )  # fmt: skip
    for place, nodes in places.items():
        for node in nodes.values():
            # A file's name is told by the loader: it is a placeholder, or an argument of the function around.
            named = node.input if functions.keys() & called(node) else node.input[: node.op in _RESTORES]
            if any(_origin(nodes, name) not in _TOLD for name in named if not name.startswith("^")):
                raise EdgerunError("restoring the variables would read another file; it is not run",
                                   got=f"{node.name} in {place or 'the graph'}")  # fmt: skip


def _origin(nodes: dict[str, Any], name: str) -> str:
    """The operator that makes the value, seen through those that pass it on; "" for a function's argument."""
    for _ in nodes:
        node = nodes.get(node_of(name))
        if node is None:
            return ""
        if node.op not in {"Identity", "ShardedFilename"} or not node.input:
            return str(node.op)
        name = node.input[0]
    return "a circle"


def _frozen(session: Any, roots: list[str]) -> Any:
    from tensorflow.python.framework import convert_to_constants  # type: ignore[import-untyped]

    try:
        return convert_to_constants.convert_variables_to_constants_from_session_graph(
            session, session.graph.as_graph_def(), list(dict.fromkeys(roots))
        )
    except Exception as error:  # ValueError over 2 GiB, FailedPreconditionError for a variable without a value
        raise Unsupported(
            "the variables cannot be made constants", got=first_line(error), do="export it again, or in parts",
            wanted="less than 2 GB, every variable in the checkpoint",
        ) from None  # fmt: skip


def _runner(session: Any, inputs: list[Tensor], outputs: list[Tensor]) -> Any:
    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        wanted = {entry.name: entry.at for entry in outputs}
        found: dict[str, np.ndarray] = session.run(wanted, {entry.at: feeds[entry.name] for entry in inputs})
        return found

    return run
