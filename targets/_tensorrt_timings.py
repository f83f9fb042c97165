"""TensorRT's timing cache: how long each kernel took on this GPU, kept from build to build."""

# A build that finds its timings chooses the same kernels, and takes a fraction of the time. tensorrt_rtx has none: it
# chooses when it runs.

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from edgerun import cache as folder
from edgerun import files
from edgerun.errors import EdgerunError
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_library as tensorrt

KIND = "tensorrt"


def recall(trt: Any, config: Any, path: Path | None) -> Any:
    """The timings of earlier builds, set in `config`: those in `path`, or else this device's; None for tensorrt_rtx.

    Raises EdgerunError for a `path` of another device or version; our own of such are begun anew.
    """
    if tensorrt.name_of(trt) == "tensorrt_rtx":
        return None
    cache = _set(config, _stored(trt, path))
    if cache is None and path is not None:
        raise EdgerunError("this timing cache is of another device or version", got=path, do="name another file")
    return cache if cache is not None else _set(config, b"")


def keep(trt: Any, cache: Any, path: Path | None) -> None:
    """Write what `cache` holds now to where it was recalled from."""
    if cache is None:
        return
    data = bytes(cache.serialize())
    if path is not None:
        files.write_bytes(path, data, told=False)
        return
    with suppress(EdgerunError):  # a folder that cannot be written costs the next build time, and nothing else
        folder.write(KIND, _name(trt), data)


def _set(config: Any, told: bytes) -> Any:
    cache = config.create_timing_cache(told)
    return cache if cache is not None and config.set_timing_cache(cache, False) else None


def _stored(trt: Any, path: Path | None) -> bytes:
    if path is not None:
        return path.read_bytes() if path.exists() else b""
    try:
        return folder.read(KIND, _name(trt)) or b""
    except EdgerunError:  # damaged
        return b""


def _name(trt: Any) -> str:
    """By all that timings depend on: the library, the GPU, the driver's CUDA version."""
    gpu = cuda.gpu()
    return folder.key(tensorrt.name_of(trt), str(trt.__version__), gpu.name, str(gpu.capability), str(gpu.cuda))
