"""`onnxruntime.InferenceSession`, done by an edgerun session: the import changes, the calls stay."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun import registry
from edgerun.compat import _binding as binding
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import Options, Session, TensorSpec, arrays, dtypes
from edgerun.runtime.door import named
from edgerun.verbs.load import engine_of, load

__all__ = ["InferenceSession", "NodeArg"]

Provider = str | tuple[str, Mapping[str, Any]]  # and its options
CPU, CUDA, QNN = "CPUExecutionProvider", "CUDAExecutionProvider", "QNNExecutionProvider"
BUILT = {  # those that few builds of onnxruntime have, by our PROVIDER
    CUDA: "CUDA", QNN: "QNN", "XnnpackExecutionProvider": "XNNPACK", "ACLExecutionProvider": "ACL",
}  # fmt: skip
TARGETS = {
    **dict.fromkeys((CPU, *BUILT), "onnxruntime"),
    "OpenVINOExecutionProvider": "openvino",
    "TensorrtExecutionProvider": "tensorrt",
}
SWITCHES = {"use_tf32": "TF32", "enable_cuda_graph": "CUDA_GRAPH"}  # of CUDA's options, by ours
FIRST = {"device_id": "0"}  # what is so anyway
DISABLED = "optimization.disable_specified_optimizers"
FLOAT8 = 17  # TensorProto's number
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


class _Passed:
    """What onnxruntime's own session answers. Raises Unsupported on OpenVINO and TensorRT."""

    def __set_name__(self, owner: type, name: str) -> None:
        def method(session: InferenceSession, *args: Any, **words: Any) -> Any:
            return getattr(session._theirs(name), name)(*args, **words)

        setattr(owner, name, method)


_passed: Any = _Passed()


class InferenceSession:
    """A model that runs: `run(output_names, input_feed)` gives the outputs as a list, in that order.

    `providers` names where to run, the first of them that edgerun has a target for (`TARGETS`); edgerun never falls
    back to another one. Left out, with a warning, is one that the installed onnxruntime is built without, or whose
    runtime or GPU is missing; what is there runs, or is refused with the reason. On onnxruntime `sess_options` are
    handed on, with all that was added to them, once threads and entries that they leave open are set in them.
    Raises EdgerunError for bad input, Unsupported for providers and options that edgerun lacks.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: Any = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *, enable_fallback: int = 0, disabled_optimizers: Iterable[str] | None = None, **other: Any,
    ) -> None:  # fmt: skip
        if other:
            raise Unsupported("edgerun cannot honour this", got=", ".join(other), do="leave it out")
        given = path_or_bytes if isinstance(path_or_bytes, bytes) else Path(path_or_bytes)
        self._source: Path | bytes | None = given
        self._asked, self._disabled = sess_options, ";".join(disabled_optimizers or ())
        self.set_providers(providers, provider_options)
        self._disabled = ""  # it was for this once
        if enable_fallback:
            self.enable_fallback()
        if isinstance(self._source, bytes):
            self._source = None

    def set_providers(
        self, providers: Sequence[Provider] | None = None, provider_options: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Open the model's file anew on these. Raises Unsupported where it was given as bytes, which are not held."""
        if self._source is None:
            raise Unsupported("the bytes of the model are not kept", do="open another InferenceSession")
        listed = [(one, {}) if isinstance(one, str) else one for one in providers or [CPU]]
        more = [{} for _ in listed] if provider_options is None else provider_options
        if len(more) != len(listed):
            raise EdgerunError("provider_options are one dict for each provider", got=provider_options)
        name, given = _chosen([(name, {**given, **other}) for (name, given), other in zip(listed, more, strict=True)])
        target, extra, asked = TARGETS[name], _switches(name, given), self._asked
        if self._disabled:
            extra[DISABLED] = self._disabled
        if target == "onnxruntime":
            if getattr(asked, "has_providers", bool)():  # onnxruntime 1.22 has it
                raise Unsupported("providers in SessionOptions cannot be honoured", do="providers=[…] beside them")
            runtime: Any = registry.target(target)
            engine = engine_of(self._source, target)
            if self._disabled and FLOAT8 in (engine.elements or ()):  # the target's list would replace it
                raise Unsupported("a model in 8-bit floats takes no disabled_optimizers", do="leave it out")
            session: Session = runtime.load_by(engine, Options(extra=extra), asked)
            session.loosen()  # OpenVINO may read behind an input's memory where sizes do not fit
        else:
            if asked is not None:
                warnings.warn(f"of SessionOptions, {target} takes the threads and sees nothing else", stacklevel=3)
            session = load(self._source, target, Options(asked.intra_op_num_threads if asked else 0, extra))
        self.session, self._provider = session, name
        self._outputs = [spec.name for spec in session.outputs]
        doors = (*session.inputs, *session.defaults)
        self._arrays = {spec.name: spec.dtype for spec in doors if "sequence" not in spec.kind}
        self._absent = {spec.name: None for spec in doors if "optional" in spec.kind}

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """The named outputs, or all of them, as a list. An input that is optional, or has a value in the model, may be
        left out or None."""
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
        """`run` with onnxruntime's OrtValues, in and out."""
        if self._native is not None:
            return list(self._native.run_with_ort_values(output_names, input_dict_ort_values, run_options))
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

    def get_session_options(self) -> Any:
        """What onnxruntime's session runs by; elsewhere the `sess_options` that were given."""
        return self._asked if self._native is None else self._native.get_session_options()

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The options of each provider in use, as onnxruntime tells them; none of other runtimes'."""
        return {self._provider: {}} if self._native is None else self._native.get_provider_options()

    def get_inputs(self) -> list[Any]:
        """Every input that has to be fed or is optional, in the model's order: onnxruntime's, or a NodeArg."""
        return self._doors("get_inputs", self.session.inputs)

    def get_outputs(self) -> list[Any]:
        """Every output, in the model's order."""
        return self._doors("get_outputs", self.session.outputs)

    def get_overridable_initializers(self) -> list[Any]:
        """Inputs that have a value in the model where they are not fed; OpenVINO and TensorRT take none."""
        return self._doors("get_overridable_initializers", ())

    def get_providers(self) -> list[str]:
        """Where it runs: one name."""
        return [self._provider]

    def disable_fallback(self) -> None:
        """Nothing to do: edgerun never falls back."""

    def enable_fallback(self) -> None:
        """Raises Unsupported but on the CPU, which has none to fall back to."""
        if self._provider != CPU:
            raise Unsupported("edgerun never falls back to another provider", got=self._provider)

    get_modelmeta = get_provider_graph_assignment_info = get_tuning_results = set_tuning_results = _passed
    get_input_epdevices = get_input_memory_infos = get_output_memory_infos = set_ep_dynamic_options = _passed
    create_ortvalue_from_shape_and_type = run_with_ortvaluevector = release_captured_graph = _passed
    end_profiling = get_profiling_start_time_ns = _passed

    @property
    def _native(self) -> Any:
        """onnxruntime's own session; None where another runtime has the model."""
        return getattr(self.session, "native", None)

    def _doors(self, name: str, specs: Sequence[TensorSpec]) -> list[Any]:
        return [*(map(NodeArg.of, specs) if self._native is None else getattr(self._native, name)())]

    def _theirs(self, what: str) -> Any:
        if self._native is None:
            raise Unsupported(f"{what} is onnxruntime's alone", got=self._provider, wanted=CPU)
        return self._native

    def _fed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As onnxruntime reads feeds: what is None was not given, a list becomes an array of the input's type."""
        named(given, "input_feed")
        found: dict[str, Any] = dict(self._absent)
        for name, value in given.items():
            if type(value) is list and name in self._arrays:
                value = arrays.made(name, value, dtypes.dtype(self._arrays[name]))
            if value is not None:
                found[name] = value
        return found

    def _ran(
        self, names: Sequence[str], feeds: Mapping[str, Any], how: Any, out: Mapping[str, Any] | None = None
    ) -> Any:
        if how is not None and self._native is None:
            warnings.warn(f"nothing of RunOptions is seen on {self._provider}", stacklevel=3)
            how = None
        if how is None:
            return self.session.run(feeds, out or None)
        session: Any = self.session
        return session.run_by(how, feeds, out or {}, names)

    def _named(self, asked: Sequence[str] | None) -> list[str]:
        if isinstance(asked, str):
            raise EdgerunError("output names are a list", got=repr(asked), wanted=f"[{asked!r}]")
        names = list(asked) if asked else self._outputs
        for name in names:
            if name not in self._outputs:
                raise unknown("output", name, self._outputs)
        return names


def _chosen(listed: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, Mapping[str, Any]]:
    # The first provider that can be honoured, and its options; the others before it are warned of. Where none can, the
    # first that has a target, which tells why.
    known = [one for one in listed if one[0] in TARGETS]
    if not known:
        raise unknown("execution provider", listed[0][0], TARGETS)
    for one in listed:
        if one in known and _ready(one[0]):
            return one
        what = "not in available provider names" if one in known else "none that edgerun's InferenceSession opens"
        there = ", ".join(filter(_ready, TARGETS))
        warnings.warn(f"Specified provider {one[0]!r} is {what}. Available providers: {there}", stacklevel=4)
    return known[0]


def _ready(name: str) -> bool:
    """Whether what runs the provider is here, and a GPU where it needs one of TensorRT's."""
    target = registry.target(TARGETS[name], usable=False)
    if target.available() or target.runnable():
        return False
    return name not in BUILT or name in importlib.import_module("onnxruntime").get_available_providers()


def _switches(name: str, given: Mapping[str, Any]) -> dict[str, str]:
    """A provider's options in our keys. Raises Unsupported for one that nothing here stands for."""
    found = {"PROVIDER": BUILT[name]} if name in BUILT else {}
    for key, value in given.items():
        if name == CUDA and key in SWITCHES:
            found[SWITCHES[key]] = str(int(str(value).lower() in ("1", "true")))
        elif name == QNN and key == "backend_type":
            found["DEVICE"] = str(value).upper()
        elif name != CUDA or str(value) != FIRST.get(key):
            raise Unsupported(f"an option of {name} cannot be honoured", got=f"{key}={value}", do="leave it out")
    return found
