"""TensorRT's engines without weights, and kernels that are kept: what needs no GPU of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_jit as jit
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import _tensorrt_refit as refit
from edgerun.targets import tensorrt as target

builds = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
MODEL = b"the bytes of a model"
STRIPPED = {"weights": "stripped", "source": hashlib.sha256(MODEL).hexdigest()}


@builds
def test_the_builder_is_told() -> None:
    trt = tensorrt.library()
    builder, flag = tensorrt.builder(trt, tensorrt.Log(trt)), trt.BuilderFlag
    for kind, wanted in (("", set()), ("stripped", {"STRIP_PLAN", "REFIT_IDENTICAL"}), ("refittable", {"REFIT"})):
        asked = build.settings(trt, Options(extra={"WEIGHTS": kind} if kind else {}))
        config = build._config(trt, builder, asked)
        found = {name for name in ("STRIP_PLAN", "REFIT_IDENTICAL", "REFIT") if config.get_flag(getattr(flag, name))}
        assert found == wanted and asked.flags.endswith(f"weights={kind}" if kind else "level=default")


@builds
@pytest.mark.skipif(cuda.missing() is None, reason="a GPU is here, where such engines are built")
@pytest.mark.parametrize("kind", ["stripped", "refittable"])
def test_without_a_gpu_such_an_engine_is_refused(kind: str, dense: Model) -> None:
    """The builder itself gives up in the middle (tensorrt_rtx 1.7.1); the plain one of this model is built here."""
    target.compile(dense, Options())
    with pytest.raises(Unsupported, match=f"WEIGHTS={kind} is built where a GPU is") as error:
        target.compile(dense, Options(extra={"WEIGHTS": kind}))
    assert error.value.got == cuda.missing()


@builds
@pytest.mark.parametrize(
    ("extra", "kind", "message"),
    [
        ({"WEIGHTS": "striped"}, EdgerunError, "did you mean 'stripped'"),
        ({"TIMING_CACHE": "file", "COMPUTE_CAPABILITY": "portable"}, Unsupported, "keeps no timing cache"),
    ],
)
def test_what_there_is_none_of(dense: Model, extra: dict[str, str], kind: type[EdgerunError], message: str) -> None:
    if tensorrt.chosen() != "tensorrt_rtx":
        pytest.skip("tensorrt_rtx is not what builds here")
    with pytest.raises(kind, match=message):
        target.compile(dense, Options(extra=extra))


def test_where_weights_come_from(tmp_path: Path) -> None:
    path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    path.write_bytes(MODEL)
    other.write_bytes(MODEL + b".")
    assert refit.weights({}, None, None) is None and refit.weights({"weights": "refittable"}, None, None) is None
    assert refit.weights(STRIPPED, path, None) == MODEL == refit.weights(STRIPPED, None, MODEL)
    assert refit.weights({"weights": "refittable"}, other, None) == MODEL + b"."
    for header, given, source, message in (
        (STRIPPED, None, None, "no weights inside"),
        (STRIPPED, other, MODEL, "not the model whose weights were taken out"),
        (STRIPPED, tmp_path / "none.onnx", MODEL, "no such model"),
        ({}, path, None, "takes no other weights"),
    ):
        with pytest.raises(EdgerunError, match=message):
            refit.weights(header, given, source)


def test_a_model_of_another_writer_is_known_again(dense: Model, tmp_path: Path) -> None:
    """The builder saw what edgerun makes of the file, not its bytes."""
    proto = dense.to_proto()
    proto.producer_name = ""
    proto.doc_string = "written otherwise"
    theirs = bytes(proto.SerializeToString())
    saw = Model.from_bytes(theirs).to_bytes()
    assert refit.weights({"weights": "stripped", "source": hashlib.sha256(saw).hexdigest()}, None, theirs) == saw


class _Jit:
    """What a runtime cache is to us: bytes in, or refused where they are of another version; more bytes out."""

    told = b""

    def deserialize(self, told: bytes) -> bool:
        if told.startswith(b"other"):
            return False
        self.told = told
        return True

    def serialize(self) -> bytes:
        return self.told + b"."


class _Engine:
    """An ICudaEngine and its IRuntimeConfig in one."""

    def __init__(self) -> None:
        self.jit = _Jit()

    def create_runtime_config(self) -> _Engine:
        return self

    def create_runtime_cache(self) -> _Jit:
        return self.jit

    def set_runtime_cache(self, cache: _Jit) -> bool:
        return cache is self.jit

    def create_execution_context(self, config: Any = None) -> str:
        return "with kernels" if config is not None else "plain"


class _Library:
    __name__, __version__ = "tensorrt_rtx", "1.7.1"


def _opened(plan: bytes, path: Path | None = None) -> bytes:
    """What one session finds of earlier ones."""
    engine = _Engine()
    kernels = jit.Kernels(_Library(), engine, plan, path)
    assert kernels.context == "with kernels"
    kernels.keep()
    return engine.jit.told


def test_kernels_are_kept_by_engine_and_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, _timings_of_its_own: Path
) -> None:
    monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu("RTX", (8, 9), 8 << 30, (12, 8)))
    assert [_opened(b"one") for _ in range(3)] == [b"", b".", b".."]
    assert [_opened(b"two") for _ in range(2)] == [b"", b"."]
    monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu("RTX", (12, 0), 8 << 30, (12, 8)))
    assert _opened(b"one") == b""
    for entry in (_timings_of_its_own / "tensorrt_jit").iterdir():
        entry.write_bytes(b"damaged")
    assert _opened(b"one") == b"" and _opened(b"one") == b"."
    assert [_opened(b"one", tmp_path / "file") for _ in range(2)] == [b"", b"."]
    (tmp_path / "file").write_bytes(b"other version")
    with pytest.raises(EdgerunError, match="another device or version"):
        _opened(b"one", tmp_path / "file")


def test_tensorrt_itself_keeps_none(_timings_of_its_own: Path) -> None:
    library = _Library()
    library.__name__ = "tensorrt"
    kernels = jit.Kernels(library, _Engine(), b"plan", None)
    kernels.keep()
    assert kernels.context == "plain" and not (_timings_of_its_own / "tensorrt_jit").exists()
