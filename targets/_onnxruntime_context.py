"""Models that a provider compiled ahead (EPContext nodes): made with its session options, read where it is.

Such a file holds the provider's own binary in place of the nodes that it took (com.microsoft EPContext, its
attributes `source` and `ep_sdk_version`), and runs with that provider, in that version, alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Engine, Options
from edgerun.target import Issue
from edgerun.targets import _onnxruntime_providers as providers
from edgerun.targets import _onnxruntime_settings as setting
from edgerun.targets._onnxruntime_foreign import OP, key_of

if TYPE_CHECKING:
    import onnx

    from edgerun.model import Model

FORMAT = "context"


def wanted(options: Options) -> bool:
    """Whether a model is asked for that the provider has compiled."""
    return options.extra.get(setting.FORMAT) == FORMAT


def compiled(model: Model, options: Options, open_: Callable[[Engine, Options, Any], Any], runtime: Any) -> bytes:
    """`model` with what the provider took as its own binary, inside the file.

    Raises Unsupported where the provider of `options` compiles nothing ahead, took no node of this model, or cannot
    read what it wrote.
    """
    import onnx

    chosen = providers.choice(options)
    if not chosen.provider.contexts:
        names = "|".join(name for name, of in providers.PROVIDERS.items() if of.contexts)
        what = f"{providers.PROVIDER}={chosen.key} compiles nothing ahead"
        raise Unsupported(what, got=f"{setting.FORMAT}={FORMAT}", wanted=f"{providers.PROVIDER}={names}")
    settings = setting.settings(runtime, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "context.onnx")
        said = {"ep.context_enable": "1", "ep.context_embed_mode": "1", "ep.context_file_path": str(path)}
        for key, value in said.items():
            settings.add_session_config_entry(key, value)
        open_(Engine("onnxruntime", model.to_bytes()), options, settings)
        data = path.read_bytes() if path.is_file() else b""
    if not any(node.op_type == OP for node in onnx.load_from_string(data).graph.node):
        raise Unsupported(f"{chosen.key} took no node of this model", do="run the .onnx as it is")
    try:
        open_(Engine("onnxruntime", data), options, None)
    except EdgerunError as error:
        what = f"{chosen.key} of ONNX Runtime {runtime.__version__} wrote a file that it cannot read back"
        raise Unsupported(what, got=error.got, do="run the .onnx as it is, or take another version") from error
    return data


def issues(proto: onnx.ModelProto, runtime: Any) -> Iterator[Issue]:
    """The nodes of `proto` that a provider compiled, and what they run with."""
    import onnx

    for node in proto.graph.node:
        if node.op_type == OP:
            said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name != "ep_cache_context"}
            source, version = (said.get(key, b"").decode(errors="replace") for key in ("source", "ep_sdk_version"))
            yield Issue(node.name or node.output[0], OP, _reason(source, version, runtime))


def _reason(source: str, version: str, runtime: Any) -> str:
    """Where the provider is here, the option that it runs with; else that it is not."""
    made, key = f"compiled by {source or 'an execution provider'}{f' ({version})' if version else ''}", key_of(source)
    if key is None:
        return f"{made}, and runs with it alone"
    if missing := providers.missing(runtime, providers.PROVIDERS[key]):
        return f"{made}, and runs with it alone: {missing}"
    return f"{made}, and runs with {providers.PROVIDER}={key} alone"
