"""The TensorRT library: which of the two, its version, and what it says when it refuses."""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from edgerun import registry
from edgerun.errors import Unsupported
from edgerun.targets import _cuda as cuda

# `tensorrt` builds only where a GPU is; `tensorrt_rtx` builds anywhere, and runs on RTX GPUs.
OLDEST = {"tensorrt": (10, 3), "tensorrt_rtx": (1, 7)}
# The compute capabilities that tensorrt_rtx runs on: engines of its default kind on all but 7.5, as version 1.7.1 says
# where it refuses one ("8.0 8.6 8.9 12.0 12.1 >12.0"), and on 7.5 one that was built for it alone (NVIDIA's
# documentation, "CPU-Only AOT and TensorRT-RTX Engines"). Hopper, Orin, Thor and Blackwell's B GPUs are not among them.
RTX_RUNS, RTX_ALONE, RTX_FROM = frozenset({(8, 0), (8, 6), (8, 9)}), frozenset({(7, 5)}), (12, 0)
NOISE = re.compile(
    r"\[checkMacros\S* Error Code \d+: Cuda Runtime .*", re.DOTALL
)  # it looks for a GPU when it complains
# What is said behind the C++ condition that did not hold.
SAID = re.compile(r'&& ((?:"[^"]*" ?)+)|^Assertion failed: .+?(?<!:): (?=[A-Z])(.*)')


def missing(extra: str) -> str | None:
    """None when one of the two can build here, or the line that says what to install."""
    names = [name for name in OLDEST if importlib.util.find_spec(name)]
    if not names:
        return f"{registry.missing(('tensorrt_rtx',), extra)} (on a Jetson, tensorrt comes with JetPack)"
    if names == ["tensorrt"] and (reason := cuda.missing()):
        return f"tensorrt builds engines only where a GPU is: {reason}"
    try:
        trt = library()
    except (ImportError, OSError) as error:
        return f"{names[0]} cannot be loaded: {error}"
    if version(trt) < (wanted := OLDEST[name_of(trt)]):
        return f"needs {name_of(trt)}>={'.'.join(map(str, wanted))}, and {trt.__version__} is here"
    return None


def idle() -> str | None:
    """None, or why nothing that is built here runs here: no GPU answers, or none that the library runs on."""
    return cuda.missing() or refused(chosen(), cuda.gpu().capability)


def refused(name: str, capability: tuple[int, int]) -> str | None:
    """None, or why library `name` runs no engine on a GPU of this compute capability."""
    if name != "tensorrt_rtx" or capability in RTX_ALONE or portable_runs(name, capability):
        return None
    names = [f"{major}.{minor}" for major, minor in sorted(RTX_ALONE | RTX_RUNS)]
    return (
        f"tensorrt_rtx runs nothing on this GPU, of compute capability {capability[0]}.{capability[1]}; "
        f"it runs on {', '.join(names)}, and from {RTX_FROM[0]}.{RTX_FROM[1]} on"
    )


def portable_runs(name: str, capability: tuple[int, ...]) -> bool:
    """Whether a portable engine of library `name` runs there: `tensorrt` makes them for Ampere and later."""
    return (capability in RTX_RUNS or capability >= RTX_FROM) if name == "tensorrt_rtx" else capability >= (8, 0)


def chosen() -> str:
    """The library's name: `tensorrt` where it is installed and a driver answers, else `tensorrt_rtx`."""
    full = importlib.util.find_spec("tensorrt") is not None
    rtx = importlib.util.find_spec("tensorrt_rtx") is not None
    return "tensorrt" if full and not (rtx and cuda.missing()) else "tensorrt_rtx"


def library() -> Any:
    """The module of that name."""
    return importlib.import_module(chosen())


def name_of(trt: ModuleType | Any) -> str:
    """`tensorrt` or `tensorrt_rtx`."""
    return str(trt.__name__).partition(".")[0]


def version(trt: ModuleType | Any) -> tuple[int, int]:
    """Major and minor."""
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def bit(flag: Any) -> int:
    """The bit of an enumerator: the numbers of flags differ between versions, and some begin at 0."""
    return 1 << int(flag)


class Log:
    """What is said to one user of the library: `errors`, and `told` (everything else, down to `VERBOSE`). `sink` is the
    ILogger that hears it."""

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.told: list[str] = []
        self.sink = _sinks(trt.ILogger)(self)
        _KEPT.append(self.sink)


# tensorrt_rtx 1.7.1 tells one of the past that it lacks a plugin, and crashes if that one is gone.
_KEPT: list[Any] = []


@functools.cache
def _sinks(base: Any) -> Any:
    """The ILogger that writes into a Log, as long as there is one."""

    class Sink(base):  # type: ignore[misc]
        def __init__(self, own: Log) -> None:
            base.__init__(self)
            self.own = weakref.ref(own)

        def log(self, severity: Any, message: str) -> None:
            if (own := self.own()) is not None:
                (own.errors if int(severity) <= int(base.Severity.ERROR) else own.told).append(message)

    return Sink


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected inside. TensorRT logs, which runs Python, while it holds a lock that the end of an old
    builder wants: a collection at that moment waits for ever (seen with tensorrt_rtx 1.7.1)."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def builder(trt: Any, logger: Log) -> Any:
    """A Builder. Raises Unsupported where the library finds nothing to build for."""
    try:
        with uncollected():
            return trt.Builder(logger.sink)
    except (TypeError, RuntimeError) as error:  # pybind11's, when the factory gives nothing
        raise Unsupported(
            f"{name_of(trt)} cannot build here", got=reason(logger.errors) or str(error), do="build where a GPU is"
        ) from error


def reason(errors: list[str]) -> str:
    """The first thing that went wrong, without what only follows from it."""
    return shortened(errors[0]) if errors else ""


def shortened(text: str) -> str:
    """A message without its file names, C++ locations and conditions, and the search for a GPU that it ends with."""
    text = " ".join(NOISE.sub("", text).split())
    if said := SAID.search(text):
        text = "".join(re.findall(r'"([^"]*)"', said[1] or "")) or said[2]
    text = re.sub(r"\s*In \w+ at \S+:\d+\)?", "", text)
    return re.sub(r"^(\S+\.cpp(::\w+)*:\d+: |.*: Myelin \(\[[^]]*\] )", "", text)[:400].strip()
