"""`onnxruntime.InferenceSession`, done by an edgerun session: the import changes, the calls stay."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgerun.compat import _binding as binding
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import Options, Session, TensorSpec, machine
from edgerun.verbs.load import load

__all__ = ["InferenceSession", "ModelMetadata", "NodeArg"]

TARGETS = {
    "CPUExecutionProvider": "onnxruntime",
    "CUDAExecutionProvider": "onnxruntime",
    "OpenVINOExecutionProvider": "openvino",
    "TensorrtExecutionProvider": "tensorrt",
}
CUDA = "CUDAExecutionProvider"
EXTRA = {CUDA: {"PROVIDER": "CUDA"}}  # what its target is told besides
SWITCHES = {"use_tf32": "TF32", "enable_cuda_graph": "CUDA_GRAPH"}  # of CUDA's options, by ours
FIRST = {"device_id": "0"}  # what is so anyway
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


@dataclass(frozen=True)
class ModelMetadata:
    """Who made the model, its graph's name, its texts and version, and its `metadata_props`, as strings."""

    custom_metadata_map: Mapping[str, str]
    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int


REFUSED = {  # of SessionOptions, what can be read there and is not done
    "enable_profiling": "edgerun why-slow tells what each kernel takes",
    "optimized_model_filepath": "edgerun compile -o NAME.ort writes an optimized model",
}


class InferenceSession:
    """A model that runs: `run(output_names, input_feed)` gives the outputs as a list, in that order.

    `providers` names where to run, the first of them that edgerun has a target for (`TARGETS`); edgerun never falls
    back to another one. CUDAExecutionProvider is left out, with a warning, where the installed onnxruntime is built
    without it; where it has it, it runs, or is refused with the reason. Of `sess_options` (onnxruntime's own, or
    anything with its attributes) the threads and the level of optimization count; config entries, initializers and
    sizes that were added cannot be read there and are not seen: `edgerun.load` takes entries as `Options(extra=…)`.
    Raises EdgerunError for bad input, Unsupported for providers and options that edgerun lacks.
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
        name, given = _chosen(providers or ["CPUExecutionProvider"])
        source = path_or_bytes if isinstance(path_or_bytes, bytes) else Path(path_or_bytes)
        options = _options(sess_options, TARGETS[name])
        extra = {**options.extra, **EXTRA.get(name, {}), **_switches(name, given)}
        self.session: Session = load(source, TARGETS[name], replace(options, extra=extra))
        if TARGETS[name] == "onnxruntime":  # OpenVINO may read behind an input's memory where sizes do not fit
            self.session.loosen()
        self._provider, self._asked = name, sess_options
        self._outputs = [spec.name for spec in self.session.outputs]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """The named outputs, or all of them, as a list. `run_options` may say their defaults and no more."""
        binding.check_run_options(run_options)
        names = self._named(output_names)
        outputs = self.session.run(input_feed)
        return [outputs[name] for name in names]

    def run_async(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], None], user_data: Any, run_options: Any = None,
    ) -> None:  # fmt: skip
        """`run` on a thread of the session's, which then calls `callback(outputs, user_data, error)`: the outputs and
        "", or [] and what was refused. Waits while two runs are in flight."""
        binding.check_run_options(run_options)
        names = self._named(output_names)

        def ended(future: Future[Any]) -> None:
            error = future.exception()
            results = [] if error else [future.result()[name] for name in names]
            callback(results, user_data, str(error) if error else "")

        self.session.run_async(input_feed).add_done_callback(ended)

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """`run` with onnxruntime's OrtValues in host memory, in and out."""
        feeds = {name: binding.array(value) for name, value in input_dict_ort_values.items()}
        return [binding.ort_value(result) for result in self.run(output_names, feeds, run_options)]

    def io_binding(self) -> binding.IOBinding:
        """A new binding of arrays in host memory."""
        return binding.IOBinding(self.session.inputs, self.session.outputs)

    def run_with_iobinding(self, iobinding: binding.IOBinding, run_options: Any = None) -> None:
        """Run with the arrays that are bound. Raises EdgerunError where an input or every output is missing."""
        binding.check_run_options(run_options)
        if not iobinding.places:
            raise EdgerunError("no output is bound", wanted=", ".join(self._outputs), do="bind_output(name)")
        places = {name: place for name, place in iobinding.places.items() if place is not None}
        outputs = self.session.run(iobinding.feeds, places or None)
        iobinding.results = [outputs[name] for name in iobinding.places]

    def get_modelmeta(self) -> ModelMetadata:
        """What the file says of the model. Raises Unsupported on targets whose runtime does not tell."""
        told = getattr(self.session, "model_metadata", None)
        if told is None:
            what = f"what runs {self._provider} tells no more of a model than its metadata_props"
            raise Unsupported(what, do="read session.session.metadata")
        names = [field.name for field in fields(ModelMetadata)]
        return ModelMetadata(**{name: getattr(told, name) for name in names})

    def get_session_options(self) -> Any:
        """The `sess_options` that were given; else onnxruntime's own, with what this session runs by."""
        if self._asked is None:
            try:
                from onnxruntime import SessionOptions  # type: ignore[import-untyped]
            except ImportError as error:
                raise Unsupported("SessionOptions are onnxruntime's", got=str(error)) from error
            self._asked = SessionOptions()
            self._asked.intra_op_num_threads = machine.threads(0, 1)
        return self._asked

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The options of each provider in use, as onnxruntime tells them; none of other runtimes'."""
        told = getattr(self.session, "provider_options", None)
        return {self._provider: {}} if told is None else {name: dict(options) for name, options in told.items()}

    def get_inputs(self) -> list[NodeArg]:
        """Every input, in the model's order."""
        return [NodeArg.of(spec) for spec in self.session.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Every output, in the model's order."""
        return [NodeArg.of(spec) for spec in self.session.outputs]

    def get_providers(self) -> list[str]:
        """Where it runs: one name."""
        return [self._provider]

    def _named(self, asked: Sequence[str] | None) -> list[str]:
        if isinstance(asked, str):
            raise EdgerunError("output names are a list", got=repr(asked), wanted=f"[{asked!r}]")
        names = list(asked) if asked else self._outputs
        for name in names:
            if name not in self._outputs:
                raise unknown("output", name, self._outputs)
        return names


def _chosen(asked: Sequence[str | tuple[str, Mapping[str, Any]]]) -> tuple[str, Mapping[str, Any]]:
    """The first provider that can be honoured, and its options; the others before it are warned of."""
    listed = [(one, {}) if isinstance(one, str) else (one[0], one[1]) for one in asked]
    if all(name not in TARGETS for name, _ in listed):
        raise unknown("execution provider", listed[0][0], TARGETS)
    built = _built() if any(name == CUDA for name, _ in listed) else ()
    for name, given in listed:
        if name in TARGETS and (name != CUDA or name in built):
            return name, given
        there = ", ".join(known for known in TARGETS if known != CUDA or known in built)
        told = f"Specified provider {name!r} is not in available provider names. Available providers: {there}"
        warnings.warn(told, stacklevel=3)
    do = "pip install 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime, or name CPUExecutionProvider too"
    raise Unsupported("the installed onnxruntime is built without it", got=CUDA, do=do)


def _built() -> Sequence[str]:
    """The providers that the installed onnxruntime is built with; none where there is none."""
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError:
        return ()
    return list(runtime.get_available_providers())


def _switches(name: str, given: Mapping[str, Any]) -> dict[str, str]:
    """A provider's options in our keys. Raises Unsupported for one that nothing here stands for."""
    found = {}
    for key, value in given.items():
        if name == CUDA and key in SWITCHES:
            found[SWITCHES[key]] = str(int(str(value).lower() in ("1", "true")))
        elif name != CUDA or str(value) != FIRST.get(key):
            raise Unsupported(f"an option of {name} cannot be honoured", got=f"{key}={value}", do="leave it out")
    return found


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
    for name, do in REFUSED.items():
        if given := getattr(asked, name, None):
            raise Unsupported(f"SessionOptions.{name} cannot be honoured", got=given, do=do)
    return Options(threads=threads, extra=extra)
