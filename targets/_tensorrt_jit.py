"""TensorRT-RTX's runtime cache: kernels that it compiles for the GPU when a model opens and first runs are kept."""

# A file for each engine and device in the cache folder, or the one that is named. `tensorrt` compiles while it builds.

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgerun import cache as folder
from edgerun import files
from edgerun.errors import EdgerunError
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_library as tensorrt

KIND = "tensorrt_jit"


class Kernels:
    """The execution context of `engine`, and the kernels that are compiled for it; `path` names where they are kept."""

    def __init__(self, trt: Any, engine: Any, plan: bytes, path: Path | None) -> None:
        self._jit: Any = None
        self._path, self._told = path, b""
        if tensorrt.name_of(trt) != "tensorrt_rtx":
            self.context: Any = engine.create_execution_context()
            return
        self._name = _name(trt, plan)
        runtime_config = engine.create_runtime_config()
        self._jit = runtime_config.create_runtime_cache()
        self._told = self._stored()
        if self._told and not self._jit.deserialize(self._told) and path is not None:
            raise EdgerunError("this runtime cache is of another device or version", got=path, do="name another file")
        runtime_config.set_runtime_cache(self._jit)
        self.context = engine.create_execution_context(runtime_config)

    def keep(self) -> None:
        """Write what has been compiled, where that is new."""
        if self._jit is None:
            return
        data = bytes(self._jit.serialize())
        self._jit = None
        if data == self._told:
            return
        with suppress(EdgerunError):  # a place that cannot be written costs the next opening time, and nothing else
            if self._path is not None:
                files.write_bytes(self._path, data, told=False)
            else:
                folder.write(KIND, self._name, data)

    def _stored(self) -> bytes:
        if self._path is not None:
            return self._path.read_bytes() if self._path.exists() else b""
        try:
            return folder.read(KIND, self._name) or b""
        except EdgerunError:  # damaged
            return b""


def _name(trt: Any, plan: bytes) -> str:
    """By the engine, and all that its kernels depend on: the library, the GPU, the driver's CUDA version."""
    gpu = cuda.gpu()
    device = (gpu.name, str(gpu.capability), str(gpu.cuda))
    return folder.key(tensorrt.name_of(trt), str(trt.__version__), *device, hashlib.sha256(plan).hexdigest())
