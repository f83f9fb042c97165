"""What an InferenceSession is asked for, in our words: execution providers, their options, SessionOptions."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import Options

Provider = tuple[str, Mapping[str, Any]]  # its name and its options
TARGETS = {
    "CPUExecutionProvider": "onnxruntime",
    "CUDAExecutionProvider": "onnxruntime",
    "OpenVINOExecutionProvider": "openvino",
    "TensorrtExecutionProvider": "tensorrt",
}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SWITCHES = {"use_tf32": "TF32", "enable_cuda_graph": "CUDA_GRAPH"}  # of CUDA's options, by ours
FIRST = {"device_id": "0"}  # what is so anyway
LEVELS = {"ORT_DISABLE_ALL": "off", "ORT_ENABLE_BASIC": "basic", "ORT_ENABLE_EXTENDED": "extended"}
REFUSED = {  # of SessionOptions, where they are not used themselves: what can be read there and is not done
    "enable_profiling": "edgerun why-slow tells what each kernel takes",
    "optimized_model_filepath": "edgerun compile -o NAME.ort writes an optimized model",
}


def listed(providers: Sequence[str | Provider] | None, options: Sequence[Mapping[str, Any]] | None) -> list[Provider]:
    """Every provider that is asked for, with its options: the CPU's where none is."""
    asked = list(providers or [CPU])
    if options is None:
        return [(one, {}) if isinstance(one, str) else (one[0], one[1]) for one in asked]
    names = [one for one in asked if isinstance(one, str)]
    if not len(names) == len(asked) == len(options):
        raise EdgerunError("provider_options do not go with providers", got=f"{options} for {asked}",
                           wanted="a name and a dict for each provider")  # fmt: skip
    return list(zip(names, options, strict=True))


def chosen(asked: Sequence[Provider]) -> Provider:
    """The first provider that can be honoured, and its options; the others before it are warned of."""
    if all(name not in TARGETS for name, _ in asked):
        raise unknown("execution provider", asked[0][0], TARGETS)
    built = _built() if any(name == CUDA for name, _ in asked) else ()
    for name, given in asked:
        if name in TARGETS and (name != CUDA or name in built):
            return name, given
        there = ", ".join(known for known in TARGETS if known != CUDA or known in built)
        told = f"Specified provider {name!r} is not in available provider names. Available providers: {there}"
        warnings.warn(told, stacklevel=4)
    do = "pip install 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime, or name CPUExecutionProvider too"
    raise Unsupported("the installed onnxruntime is built without it", got=CUDA, do=do)


def _built() -> Sequence[str]:
    """The providers that the installed onnxruntime is built with; none where there is none."""
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError:
        return ()
    return list(runtime.get_available_providers())


def switches(name: str, given: Mapping[str, Any]) -> dict[str, str]:
    """A provider's options in our keys. Raises Unsupported for one that nothing here stands for."""
    found = {"PROVIDER": "CUDA"} if name == CUDA else {}
    for key, value in given.items():
        if name == CUDA and key in SWITCHES:
            found[SWITCHES[key]] = str(int(str(value).lower() in ("1", "true")))
        elif name != CUDA or str(value) != FIRST.get(key):
            raise Unsupported(f"an option of {name} cannot be honoured", got=f"{key}={value}", do="leave it out")
    return found


def native(asked: Any) -> bool:
    """Whether these are onnxruntime's own SessionOptions or RunOptions, which hold more than can be read there."""
    return any(kind.__module__.startswith("onnxruntime.") for kind in type(asked).__mro__)


def options(asked: Any, target: str) -> Options:
    """Ours, of attributes that can be read. Raises Unsupported for those that say what is not done."""
    if asked is None:
        return Options()
    extra = {}
    level = getattr(getattr(asked, "graph_optimization_level", None), "name", "")
    if level in LEVELS and target == "onnxruntime":
        extra["graph_optimization_level"] = LEVELS[level]
    if getattr(getattr(asked, "execution_mode", None), "name", "ORT_SEQUENTIAL") != "ORT_SEQUENTIAL":
        raise EdgerunError("nodes run one after the other", got="ORT_PARALLEL", do="leave execution_mode as it is")
    for name, do in REFUSED.items():
        if given := getattr(asked, name, None):
            raise Unsupported(f"SessionOptions.{name} cannot be honoured", got=given, do=do)
    if native(asked):
        told = "of SessionOptions the threads count here; entries, initializers, sizes and operators that were added"
        warnings.warn(f"{told} are onnxruntime's, and not seen by {target}", stacklevel=4)
    return Options(threads=int(getattr(asked, "intra_op_num_threads", 0)), extra=extra)


def check_providers(asked: Any) -> None:
    """Raise Unsupported where providers were added to SessionOptions: what was added there cannot be read."""
    if native(asked) and asked.has_providers():
        raise Unsupported("providers of SessionOptions cannot be honoured", got="add_provider…",
                          do="InferenceSession(…, providers=[…])")  # fmt: skip
