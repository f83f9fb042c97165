"""ONNX Runtime beside the CPU: its execution providers, why one cannot run here, and the nodes that it leaves."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import Options

if TYPE_CHECKING:
    from edgerun.target import Issue

# Our keys in Options.extra.
PROVIDER, TF32, GRAPH, DEVICE = "PROVIDER", "TF32", "CUDA_GRAPH", "DEVICE"
KEYS = frozenset({PROVIDER, TF32, GRAPH, DEVICE})
RECORD = "session.record_ep_graph_assignment_info"  # the runtime's key: without it, it doesn't say where nodes run


NONE: Mapping[str, Any] = MappingProxyType({})


class Provider(NamedTuple):
    """An execution provider by the runtime's `name`, and what a machine needs for it.

    `library` is the part of the file's name that holds it ("": the runtime itself does; else a GPU's). `said` are its
    options that are never left to it, `switches` ours by name with its own. It has what is in `always` and cannot be
    told otherwise. What it leaves is offered to `then` before the CPU. `install` says how to get it. `devices` are the
    hardware that it may run on, the first where nothing is said, each with the options that say so. `threads` is its
    option for how many, where its pool is its own. It compiles models ahead where it makes `contexts`.
    """

    name: str
    install: str
    library: str = ""
    said: Mapping[str, str] = NONE
    switches: Mapping[str, str] = NONE
    always: frozenset[str] = frozenset()
    then: tuple[str, ...] = ()
    devices: Mapping[str, Mapping[str, str]] = NONE
    threads: str = ""
    contexts: bool = False


_GPU = "pip install 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime"
PROVIDERS = {
    "CPU": Provider("CPUExecutionProvider", ""),
    # Its own search for convolutions is a race, which may end with other kernels, and so other bits, in every session.
    "CUDA": Provider(
        "CUDAExecutionProvider", _GPU, "cuda", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
        {TF32: "use_tf32", GRAPH: "enable_cuda_graph"},
    ),
    "TENSORRT": Provider(
        "TensorrtExecutionProvider", f"{_GPU}, and the TensorRT that it was built with", "tensorrt",
        always=frozenset({TF32}), then=("CUDA",), contexts=True,
    ),
    "XNNPACK": Provider(
        "XnnpackExecutionProvider", "build ONNX Runtime with --use_xnnpack", threads="intra_op_num_threads"
    ),
    # Its fast math, which rounds to bfloat16, is off where nothing is said.
    "ACL": Provider("ACLExecutionProvider", "build ONNX Runtime with --use_acl, on an Arm device"),
    # Its GPU and NPU compute in float16 where nothing is said; ACCURACY keeps what the model says.
    "OPENVINO": Provider(
        "OpenVINOExecutionProvider", "pip install onnxruntime-openvino in place of onnxruntime",
        threads="num_of_threads",
        devices={
            "CPU": {"device_type": "CPU", "precision": "FP32"},
            **{name: {"device_type": name, "precision": "ACCURACY"} for name in ("GPU", "NPU")},
        },
        contexts=True,
    ),
    "QNN": Provider(
        "QNNExecutionProvider", "pip install onnxruntime-qnn in place of onnxruntime, on a Qualcomm device",
        devices={"HTP": {"backend_type": "htp"}, "GPU": {"backend_type": "gpu"}, "CPU": {"backend_type": "cpu"}},
        contexts=True,
    ),
}  # fmt: skip

TAKES = {
    f"{PROVIDER}={'|'.join(PROVIDERS)}": "what runs the nodes; those that it leaves to the CPU are told",
    f"{DEVICE}=CPU|GPU|NPU|HTP": "the hardware of PROVIDER=OPENVINO (CPU, GPU, NPU) or QNN (HTP, GPU, CPU)",
    f"{TF32}=0|1": "products in TF32 on PROVIDER=CUDA; 0 where nothing is said",
    f"{GRAPH}=0|1": "runs of the same shapes are replayed as CUDA graphs, on PROVIDER=CUDA",
}


class Choice(NamedTuple):
    """The provider that is asked for, by our name, its switches that are on, and its hardware ("" where it has one)."""

    key: str
    on: frozenset[str]
    hardware: str = ""

    @property
    def provider(self) -> Provider:
        """What the name stands for."""
        return PROVIDERS[self.key]

    @property
    def graph(self) -> bool:
        """Whether runs are replayed as CUDA graphs."""
        return GRAPH in self.on

    def listed(self, threads: int) -> list[tuple[str, dict[str, str]]]:
        """What InferenceSession takes as `providers`: names with options, the one asked for first."""
        found = []
        for key in (self.key, *self.provider.then):
            of = PROVIDERS[key]
            said = dict(of.said) | {name: str(int(ours in self.on)) for ours, name in of.switches.items()}
            said |= of.devices.get(self.hardware, {})
            if of.threads:
                said[of.threads] = str(threads)
            found.append((of.name, said))
        return found

    def device(self) -> dict[str, str]:
        """What a fingerprint has to say beside the runtime's own; nothing for the CPU."""
        if self.key == "CPU":
            return {}
        told = {
            "provider": self.key,
            "flags": " ".join(f"{key.lower()}={int(key in self.on)}" for key in (TF32, GRAPH)),
        }
        told |= {"hardware": self.hardware} if self.hardware else {}
        if self.provider.library and (cuda := _cuda()).missing() is None:
            gpu = cuda.gpu()
            capability, version = ("{}.{}".format(*pair) for pair in (gpu.capability, gpu.cuda))
            told |= {"gpu": gpu.name, "capability": capability, "cuda": version}
        return told


_CPU = Choice("CPU", frozenset())


def choice(options: Options) -> Choice:
    """Read our keys of `Options.extra`. Raises EdgerunError for a value that there is none of."""
    if not options.extra:
        return _CPU
    key = options.extra.get(PROVIDER, "CPU")
    if key not in PROVIDERS:
        raise _of_hardware(key) or unknown("execution provider", key, PROVIDERS)
    of, on = PROVIDERS[key], set[str]()
    for switch in (TF32, GRAPH):
        value = options.extra.get(switch)
        if value not in (None, "0", "1"):
            raise EdgerunError(f"{switch} is a switch", got=value, wanted="0 or 1")
        if value == "1" and switch not in {*of.switches, *of.always}:
            names = " or ".join(name for name, other in PROVIDERS.items() if switch in {*other.switches, *other.always})
            raise EdgerunError(f"{PROVIDER}={key} has no {switch}", got=f"{switch}=1", wanted=f"{PROVIDER}={names}")
        on |= {switch} if value == "1" else set()
    hardware = options.extra.get(DEVICE, next(iter(of.devices), ""))
    if hardware and hardware not in of.devices:
        if not of.devices:
            names = " or ".join(name for name, other in PROVIDERS.items() if other.devices)
            raise EdgerunError(f"{PROVIDER}={key} has one {DEVICE}", got=hardware, wanted=f"{PROVIDER}={names}")
        raise unknown(f"device of {PROVIDER}={key}", hardware, of.devices)
    return Choice(key, frozenset(on), hardware)


def _of_hardware(name: str) -> EdgerunError | None:
    """What to say where a GPU or NPU is asked for, and not what reaches it; None for other names."""
    kind = name.upper()
    found = [f"{PROVIDER}={key} (NVIDIA's)" for key, of in PROVIDERS.items() if of.library and kind == "GPU"]
    found += [f"{PROVIDER}={key} with {DEVICE}={kind}" for key, of in PROVIDERS.items() if kind in of.devices]
    if not found or kind in PROVIDERS:
        return None
    wanted = ", ".join(found)
    return EdgerunError("ONNX Runtime takes an execution provider, not hardware", got=name, wanted=wanted)


def require(runtime: Any, chosen: Choice) -> None:
    """Raise Unsupported with the reason where the provider cannot run, for the runtime would take the CPU instead, or
    cannot run as it is asked to."""
    if reason := missing(runtime, chosen.provider):
        do = "run it where an NVIDIA GPU is" if reason == _cuda().missing() else chosen.provider.install
        raise Unsupported(f"ONNX Runtime cannot run on {chosen.key} here", got=reason, do=do)
    for switch in chosen.provider.always - chosen.on:
        what = f"{PROVIDER}={chosen.key} has no way to turn {switch} off"
        raise Unsupported(what, got=f"{switch}=0, as where nothing is said", do=f"say {switch}=1 as well")


def missing(runtime: Any, of: Provider) -> str | None:
    """None, or why the provider cannot run: the list of what a build has tells nothing of what can be loaded."""
    if of.name not in runtime.get_available_providers():
        return f"this build of ONNX Runtime has no {of.name}"
    return (_cuda().missing() or _unloadable(runtime, of.library)) if of.library else None


def _cuda() -> Any:
    """The driver's module, which the CPU alone does without."""
    from edgerun.targets import _cuda as cuda

    return cuda


@functools.cache
def _unloadable(runtime: Any, library: str) -> str | None:
    """None, or what is missing of CUDA, cuDNN or TensorRT; those of NVIDIA's packages are looked for first."""
    import contextlib
    import io

    preload = getattr(runtime, "preload_dlls", None)  # from 1.21 on
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            preload()
    try:  # as the runtime does it: what providers share is loaded for all
        for name, mode in (("shared", ctypes.RTLD_GLOBAL), (library, ctypes.DEFAULT_MODE)):
            path = Path(runtime.__file__).parent / f"capi/libonnxruntime_providers_{name}.so"
            if path.exists():
                ctypes.CDLL(str(path), mode=mode)
    except OSError as error:
        return str(error)
    return None


def left(session: Any, chosen: Choice) -> tuple[Issue, ...] | None:
    """The nodes of an open session that run elsewhere, each with where; told on stderr as well. None: nobody tells.

    Nodes that only compute shapes are among them: the runtime leaves those on the CPU by itself.
    """
    if chosen.key == "CPU":
        return ()
    from collections import Counter

    from edgerun.target import Issue

    assigned = getattr(session, "get_provider_graph_assignment_info", None)
    if assigned is None:
        _tell(f"this version of ONNX Runtime does not say which nodes run on {chosen.key}")
        return None
    parts = [(str(part.ep_name).removesuffix("ExecutionProvider"), list(part.get_nodes())) for part in assigned()]
    own = chosen.provider.name.removesuffix("ExecutionProvider")
    found = tuple(Issue(n.name, n.op_type, f"runs on {place}") for place, nodes in parts if place != own for n in nodes)
    if found:
        total = sum(len(nodes) for _, nodes in parts)
        counts = ", ".join(f"{op} {count}" for op, count in Counter(issue.op for issue in found).most_common())
        places = " and ".join(sorted({place for place, nodes in parts if place != own and nodes}))
        _tell(f"{len(found)} of {total} nodes do not run on {chosen.key} but on {places}: {counts}")
    return found


@functools.cache
def _tell(text: str) -> None:
    """Once: a benchmark opens the same model many times."""
    import logging

    logging.getLogger("edgerun").warning(text)
