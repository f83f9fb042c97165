"""`onnxruntime.InferenceSession`, done by an edgerun session: the import changes, the calls stay."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import registry
from edgerun.compat import _asked as asked
from edgerun.compat import _binding as binding
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import Options, Session, TensorSpec, dtypes
from edgerun.runtime.door import named
from edgerun.verbs.load import engine_of, load

__all__ = ["InferenceSession", "ModelMetadata", "NodeArg"]

# numpy's names, as ONNX Runtime writes them
TYPES = {
    "float32": "float", "float64": "double", "object": "string", "float8_e4m3fn": "float8e4m3fn",
    "float8_e4m3fnuz": "float8e4m3fnuz", "float8_e5m2": "float8e5m2", "float8_e5m2fnuz": "float8e5m2fnuz",
}  # fmt: skip


@dataclass(frozen=True)
class NodeArg:
    """An input or output: its name, its type as `tensor(float)`, its shape with words, or None, for open dimensions."""

    name: str
    type: str
    shape: list[int | str | None]

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


def _passed(name: str) -> Callable[..., Any]:
    """A method that ONNX Runtime's own session answers, where it is that which runs."""

    def method(self: InferenceSession, *args: Any, **words: Any) -> Any:
        return getattr(self._theirs(name), name)(*args, **words)

    method.__name__, method.__doc__ = name, f"As onnxruntime's `{name}`. Raises Unsupported on OpenVINO and TensorRT."
    return method


class InferenceSession:
    """A model that runs: `run(output_names, input_feed)` gives the outputs as a list, in that order.

    `providers` names where to run, the first of them that edgerun has a target for; edgerun never falls back to
    another one. CUDAExecutionProvider is left out, with a warning, where the installed onnxruntime is built without
    it; where it has it, it runs, or is refused with the reason. On these two providers onnxruntime's own `sess_options`
    are used themselves, with all that was added to them; threads, and two entries, are set in them where they leave
    them open. Of anything else, and on OpenVINO and TensorRT, the threads and the level of optimization count, and a
    warning says so. Raises EdgerunError for bad input, Unsupported for providers and options that edgerun lacks.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: Any = None,
        providers: Sequence[str | asked.Provider] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *,
        enable_fallback: int = 0,
        disabled_optimizers: Sequence[str] = (),
    ) -> None:
        asked.check_providers(sess_options)
        if disabled_optimizers:
            do = 'add_session_config_entry("optimization.disable_specified_optimizers", "one;other")'
            raise Unsupported(
                "disabled_optimizers cannot be honoured", got=disabled_optimizers, do=f"SessionOptions.{do}"
            )
        source = path_or_bytes if isinstance(path_or_bytes, bytes) else Path(path_or_bytes)
        self._path = source if isinstance(source, Path) else None  # bytes are not held
        self._asked = sess_options
        self._open(source, asked.listed(providers, provider_options))
        if enable_fallback:
            self.enable_fallback()

    def _open(self, source: Path | bytes, listed: Sequence[asked.Provider]) -> None:
        name, given = asked.chosen(listed)
        target, extra = asked.TARGETS[name], asked.switches(name, given)
        if target == "onnxruntime" and asked.native(self._asked):
            runtime: Any = registry.target(target)
            self.session: Session = runtime.load(engine_of(source, target), Options(extra=extra), self._asked)
        else:
            options = asked.options(self._asked, target)
            self.session = load(source, target, replace(options, extra={**options.extra, **extra}))
        if target == "onnxruntime":  # OpenVINO may read behind an input's memory where sizes do not fit
            self.session.loosen()
        self._provider = name
        self._outputs = [spec.name for spec in self.session.outputs]
        doors = (*self.session.inputs, *self.session.defaults)
        self._arrays = {spec.name: spec.dtype for spec in doors if "sequence" not in spec.kind}
        self._absent = {spec.name: None for spec in doors if "optional" in spec.kind}

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """The named outputs, or all of them, as a list. An optional input, or one with a value in the model, may be
        left out or None. OpenVINO and TensorRT honour no `run_options` but their defaults."""
        names = self._named(output_names)
        outputs = self._ran(names, self._fed(input_feed), run_options)
        return [outputs[name] for name in names]

    def run_async(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], None], user_data: Any, run_options: Any = None,
    ) -> None:  # fmt: skip
        """`run` on a thread of the session's, which then calls `callback(outputs, user_data, error)`: the outputs and
        "", or [] and what was refused. Waits while two runs are in flight."""
        names, feeds = self._named(output_names), self._fed(input_feed)

        def ended(future: Future[Any]) -> None:
            error = future.exception()
            results = [] if error else [future.result()[name] for name in names]
            callback(results, user_data, str(error) if error else "")

        self.session.submit(lambda: self._ran(names, feeds, run_options)).add_done_callback(ended)

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """`run` with onnxruntime's OrtValues in host memory, in and out."""
        feeds = {name: binding.array(value) for name, value in input_dict_ort_values.items()}
        return [binding.ort_value(result) for result in self.run(output_names, feeds, run_options)]

    def io_binding(self) -> binding.IOBinding:
        """A new binding of arrays in host memory."""
        return binding.IOBinding((*self.session.inputs, *self.session.defaults), self.session.outputs)

    def run_with_iobinding(self, iobinding: binding.IOBinding, run_options: Any = None) -> None:
        """Run with the arrays that are bound. Raises EdgerunError where an input or every output is missing."""
        if not iobinding.places:
            raise EdgerunError("no output is bound", wanted=", ".join(self._outputs), do="bind_output(name)")
        places = {name: place for name, place in iobinding.places.items() if place is not None}
        outputs = self._ran(list(iobinding.places), {**self._absent, **iobinding.feeds}, run_options, places)
        iobinding.results = [outputs[name] for name in iobinding.places]

    def get_modelmeta(self) -> ModelMetadata:
        """What the file says of the model. Raises Unsupported on targets whose runtime does not tell."""
        told = self._theirs("more than metadata_props", "read session.session.metadata").get_modelmeta()
        names = [field.name for field in fields(ModelMetadata)]
        return ModelMetadata(**{name: getattr(told, name) for name in names})

    def get_session_options(self) -> Any:
        """What this session runs by; on OpenVINO and TensorRT the `sess_options` that were given."""
        if (theirs := getattr(self.session, "native", None)) is not None:
            return theirs.get_session_options()
        return self._theirs("SessionOptions") if self._asked is None else self._asked

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The options of each provider in use, as onnxruntime tells them; none of other runtimes'."""
        theirs = getattr(self.session, "native", None)
        return {self._provider: {}} if theirs is None else theirs.get_provider_options()

    def get_inputs(self) -> list[NodeArg]:
        """Every input that has to be fed, or is optional, in the model's order."""
        return self._doors("get_inputs", self.session.inputs)

    def get_outputs(self) -> list[NodeArg]:
        """Every output, in the model's order."""
        return self._doors("get_outputs", self.session.outputs)

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Inputs that have a value in the model where they are not fed; on OpenVINO and TensorRT they cannot be."""
        return self._doors("get_overridable_initializers", self.session.defaults)

    def get_providers(self) -> list[str]:
        """Where it runs: one name."""
        return [self._provider]

    def set_providers(
        self, providers: Sequence[str | asked.Provider] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """Open the model's file anew on these. Raises Unsupported where it was given as bytes: they are gone."""
        if self._path is None:
            do = "open another InferenceSession"
            raise Unsupported("the bytes of the model are not kept for other providers", got=providers, do=do)
        before = self.session
        self._open(self._path, asked.listed(providers, provider_options))
        before.close()

    def disable_fallback(self) -> None:
        """Nothing to do: edgerun never falls back."""

    def enable_fallback(self) -> None:
        """Nothing to do on the CPU, behind which there is nothing. Raises Unsupported elsewhere."""
        if self._provider != asked.CPU:
            raise Unsupported(
                "edgerun never falls back to another provider", got=self._provider, do="disable_fallback()"
            )

    end_profiling = _passed("end_profiling")
    create_ortvalue_from_shape_and_type = _passed("create_ortvalue_from_shape_and_type")
    get_input_epdevices = _passed("get_input_epdevices")
    get_input_memory_infos = _passed("get_input_memory_infos")
    get_output_memory_infos = _passed("get_output_memory_infos")
    get_profiling_start_time_ns = _passed("get_profiling_start_time_ns")
    get_provider_graph_assignment_info = _passed("get_provider_graph_assignment_info")
    get_tuning_results = _passed("get_tuning_results")
    release_captured_graph = _passed("release_captured_graph")
    run_with_ortvaluevector = _passed("run_with_ortvaluevector")
    set_ep_dynamic_options = _passed("set_ep_dynamic_options")
    set_tuning_results = _passed("set_tuning_results")

    def _theirs(self, what: str, do: str = "name CPUExecutionProvider, or leave it out") -> Any:
        """ONNX Runtime's own session. Raises Unsupported where another runtime has the model."""
        if (found := getattr(self.session, "native", None)) is None:
            raise Unsupported(f"{what} is onnxruntime's alone", got=self._provider, do=do)
        return found

    def _doors(self, name: str, specs: Sequence[TensorSpec]) -> list[NodeArg]:
        theirs = getattr(self.session, "native", None)
        if theirs is None:
            return [NodeArg.of(spec) for spec in specs]
        return [NodeArg(door.name, door.type, list(door.shape)) for door in getattr(theirs, name)()]

    def _fed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As onnxruntime reads feeds: what is None was not given, a list becomes an array of the input's type."""
        named(given, "input_feed")
        found: dict[str, Any] = dict(self._absent)
        for name, value in given.items():
            if type(value) is list and name in self._arrays:
                value = np.asarray(value, dtypes.dtype(self._arrays[name]))
            if value is not None:
                found[name] = value
        return found

    def _ran(
        self, names: Sequence[str], feeds: Mapping[str, Any], how: Any, out: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        run_by = getattr(self.session, "run_by", None)
        if how is not None and run_by is not None and asked.native(how):
            outputs: dict[str, Any] = run_by(how, feeds, out, names)
            return outputs
        binding.check_run_options(how)
        return self.session.run(feeds, out or None)

    def _named(self, asked: Sequence[str] | None) -> list[str]:
        if isinstance(asked, str):
            raise EdgerunError("output names are a list", got=repr(asked), wanted=f"[{asked!r}]")
        names = list(asked) if asked else self._outputs
        for name in names:
            if name not in self._outputs:
                raise unknown("output", name, self._outputs)
        return names
