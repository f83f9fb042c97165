"""`onnxruntime.InferenceSession`, done by an edgerun session: the import changes, the calls stay."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import Options, Session, TensorSpec
from edgerun.verbs.load import load

__all__ = ["InferenceSession", "NodeArg"]

TARGETS = {
    "CPUExecutionProvider": "onnxruntime",
    "OpenVINOExecutionProvider": "openvino",
    "TensorrtExecutionProvider": "tensorrt",
}
LEVELS = {"ORT_DISABLE_ALL": "off", "ORT_ENABLE_BASIC": "basic", "ORT_ENABLE_EXTENDED": "extended"}
# numpy's names, as ONNX Runtime writes them
TYPES = {
    "float32": "float", "float64": "double", "object": "string", "float8_e4m3fn": "float8e4m3fn",
    "float8_e4m3fnuz": "float8e4m3fnuz", "float8_e5m2": "float8e5m2", "float8_e5m2fnuz": "float8e5m2fnuz",
}  # fmt: skip


@dataclass(frozen=True)
class NodeArg:
    """An input or output: its name, its type as `tensor(float)`, its shape with words for open dimensions."""

    name: str
    type: str
    shape: list[int | str]

    @classmethod
    def of(cls, spec: TensorSpec) -> NodeArg:
        """A TensorSpec in these words."""
        text = f"tensor({TYPES.get(spec.dtype, spec.dtype)})"
        for word in reversed(spec.kind.split()):
            text = {"sequence": f"seq({text})", "optional": f"optional({text})"}.get(word, text)
        return cls(spec.name, text, list(spec.shape))


class InferenceSession:
    """A model that runs: `run(output_names, input_feed)` gives the outputs as a list, in that order.

    `providers` names where to run, the first of them that edgerun has a target for (`TARGETS`); edgerun never falls
    back to another one. Of `sess_options` (onnxruntime's own, or anything with its attributes) the threads and the
    level of optimization count. Raises EdgerunError for bad input, Unsupported for providers that edgerun lacks.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: Any = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if provider_options is not None:
            raise Unsupported("provider_options cannot be honoured", got=provider_options, do="leave them out")
        names = [name if isinstance(name, str) else name[0] for name in providers or ["CPUExecutionProvider"]]
        known = [name for name in names if name in TARGETS]
        if not known:
            raise unknown("execution provider", names[0], TARGETS)
        source = path_or_bytes if isinstance(path_or_bytes, bytes) else Path(path_or_bytes)
        self.session: Session = load(source, TARGETS[known[0]], _options(sess_options, TARGETS[known[0]]))
        self._providers = known[:1]
        self._outputs = [spec.name for spec in self.session.outputs]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """The named outputs, or all of them, as a list."""
        if run_options is not None:
            raise Unsupported("run_options cannot be honoured", got=run_options, do="leave them out")
        names = list(output_names) if output_names else self._outputs
        outputs = self.session.run(input_feed)
        for name in names:
            if name not in outputs:
                raise unknown("output", name, self._outputs)
        return [outputs[name] for name in names]

    def get_inputs(self) -> list[NodeArg]:
        """Every input, in the model's order."""
        return [NodeArg.of(spec) for spec in self.session.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Every output, in the model's order."""
        return [NodeArg.of(spec) for spec in self.session.outputs]

    def get_providers(self) -> list[str]:
        """Where it runs: one name."""
        return list(self._providers)


def _options(asked: Any, target: str) -> Options:
    if asked is None:
        return Options()
    extra = {}
    level = getattr(getattr(asked, "graph_optimization_level", None), "name", "")
    if level in LEVELS and target == "onnxruntime":
        extra["graph_optimization_level"] = LEVELS[level]
    threads = int(getattr(asked, "intra_op_num_threads", 0))
    if getattr(getattr(asked, "execution_mode", None), "name", "ORT_SEQUENTIAL") != "ORT_SEQUENTIAL":
        raise EdgerunError("nodes run one after the other", got="ORT_PARALLEL", do="leave execution_mode as it is")
    return Options(threads=threads, extra=extra)
