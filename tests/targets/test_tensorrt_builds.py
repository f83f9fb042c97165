"""What surrounds a build of TensorRT's: how far it is, timings that are kept, options for what is not here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options, TensorSpec
from edgerun.runtime.progress import listener, told
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_file as file
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import _tensorrt_timings as timings
from edgerun.targets import tensorrt as target
from edgerun.targets._tensorrt_progress import Shares

builds = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
rtx_only = pytest.mark.skipif(
    target.available() is not None or tensorrt.chosen() != "tensorrt_rtx", reason="tensorrt_rtx is not what builds here"
)


def test_phases_within_phases_are_one_share() -> None:
    """Two steps; in the second, four inner ones, and in their third two more: 1/2 + 1/2·(2/4 + 1/4·1/2)."""
    shares = Shares()
    assert shares.done() == 0
    shares.start("whole", None, 2)
    shares.step("whole", 0)
    shares.start("inner", "whole", 4)
    shares.step("inner", 1)
    shares.start("innermost", "inner", 2)
    shares.step("innermost", 0)
    assert shares.done() == pytest.approx(0.5 + 0.5 * (0.5 + 0.25 * 0.5))
    shares.finish("innermost")
    shares.step("inner", 3)
    shares.finish("inner")
    shares.step("unknown", 3)
    shares.step("whole", 1)
    assert shares.done() == 1
    shares.finish("whole")
    assert shares.done() == 0


@builds
def test_a_build_tells_how_far_it_is(dense: Model) -> None:
    heard: list[tuple[str, int, int]] = []
    with told(lambda *words: heard.append(words)):
        target.compile(dense, Options())
    shares = [done for _, done, _ in heard]
    assert shares == sorted(set(shares)) and shares[0] < 50 <= shares[-1] <= 100
    assert {(stage, total) for stage, _, total in heard} == {("building the engine", 100)}
    count = len(heard)
    target.compile(dense, Options())  # nobody asked
    assert len(heard) == count


@builds
def test_an_interrupt_ends_a_build(dense: Model) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with told(interrupt), pytest.raises(KeyboardInterrupt):
        target.compile(dense, Options())


def test_who_listens_is_who_began() -> None:
    outer, inner = (lambda *words: None), (lambda *words: None)
    nobody = listener()
    with told(outer):
        with told(inner):
            assert listener() is inner
        assert listener() is outer
    assert listener() is nobody


@rtx_only
@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({build.DLA: "0"}, Unsupported, "tensorrt_rtx builds for no DLA"),
        ({build.DLA: "2"}, EdgerunError, "number of a DLA core"),
        ({build.GRAPH: "yes"}, EdgerunError, "CUDA_GRAPH is a switch"),
    ],
)
def test_what_the_library_has_not_is_refused_by_name(
    dense: Model, extra: dict[str, str], error: type[EdgerunError], message: str
) -> None:
    with pytest.raises(error, match=message):
        target.compile(dense, Options(extra=extra))


@builds
def test_a_dla_core_that_is_not_there_is_refused() -> None:
    """Where no DLA is, the builder counts none."""
    trt = tensorrt.library()
    builder = tensorrt.builder(trt, tensorrt.Log(trt))
    if builder.num_DLA_cores:
        pytest.skip("this machine has a DLA")
    with pytest.raises(Unsupported, match="no DLA core 0 here") as error:
        build._onto_dla(trt, builder, builder.create_builder_config(), None, 0)
    assert error.value.got == "0 cores"


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_dla_takes_a_layer_at_least(taken: int, caplog: pytest.LogCaptureFixture) -> None:
    """By stand-ins for the library, which has no DLA here: of two layers so many can run on one."""

    class Config:
        def set_flag(self, flag: Any) -> None: ...

        def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802 (the library's name)
            return int(layer.index) < taken

    layers = [SimpleNamespace(index=index, name=f"layer {index}") for index in range(2)]
    network = SimpleNamespace(num_layers=2, get_layer=layers.__getitem__)
    kinds = SimpleNamespace(DeviceType=SimpleNamespace(DLA=1), BuilderFlag=SimpleNamespace(GPU_FALLBACK=2))
    given = (kinds, SimpleNamespace(num_DLA_cores=1), Config(), network, 0)
    if not taken:
        with pytest.raises(Unsupported, match="no layer of this model can run on a DLA"):
            build._onto_dla(*given)
        return
    build._onto_dla(*given)
    assert caplog.text.count("1 of 2 layers run on the GPU, not on the DLA: layer 1") == 2 - taken


def test_an_engine_for_a_dla_is_of_one_size() -> None:
    door, asked = (TensorSpec("x", "float16", ("n", 8)),), build.Settings("current", None, False, None, 0)
    assert build.sizes(door, {}, asked) == {"n": (1, 1, 1)} and build.sizes(door, {"n": (4, 4, 4)}, asked)
    with pytest.raises(Unsupported, match="one size of 'n'"):
        build.sizes(door, {"n": (1, 2, 4)}, asked)


def test_an_engine_tells_its_dla_core() -> None:
    """The flags that a build writes into its file are what the session reads."""
    for core in (None, 0, 1):
        asked = build.Settings("current", None, False, None, core)
        assert file.dla({"device": {"flags": asked.flags}}) == core
    assert file.dla({"device": {}}) is None


class _Cache:
    """What the library's timing cache is to us: bytes in, more bytes out; some are of another version."""

    def __init__(self, told: bytes) -> None:
        self.told = told

    def serialize(self) -> bytes:
        return self.told + b"."


class _Config:
    """As an IBuilderConfig that refuses caches which begin with `other`."""

    def create_timing_cache(self, told: bytes) -> _Cache | None:
        return None if told.startswith(b"other") else _Cache(told)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        return not ignore_mismatch


class _Library:
    __name__, __version__ = "tensorrt", "10.3.0"


def _built(path: Path | None = None) -> bytes:
    """What one build finds of earlier ones."""
    library: Any = _Library()
    cache = timings.recall(library, _Config(), path)
    timings.keep(library, cache, path)
    found: bytes = cache.told
    return found


def test_timings_are_kept_by_library_and_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, _timings_of_its_own: Path
) -> None:
    gpu = cuda.Gpu("Orin", (8, 7), 8 << 30, (12, 6))
    monkeypatch.setattr(cuda, "gpu", lambda: gpu)
    assert [_built() for _ in range(3)] == [b"", b".", b".."]
    monkeypatch.setattr(_Library, "__version__", "10.13.0")
    assert [_built() for _ in range(2)] == [b"", b"."]
    monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu("Orin", (8, 7), 8 << 30, (12, 9)))
    assert _built() == b""
    entries = sorted((_timings_of_its_own / "tensorrt").iterdir())
    assert len(entries) == 3
    for entry in entries:
        entry.write_bytes(b"damaged")
    assert _built() == b"" and _built() == b"."
    assert [_built(tmp_path / "file") for _ in range(2)] == [b"", b"."]
    (tmp_path / "file").write_bytes(b"other version")
    with pytest.raises(EdgerunError, match="another device or version"):
        _built(tmp_path / "file")


def test_timings_of_another_version_are_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself refuses what our key does not tell apart."""
    monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu("Orin", (8, 7), 8 << 30, (12, 6)))
    library: Any = _Library()
    timings.keep(library, _Cache(b"other version"), None)
    assert _built() == b"" and _built() == b"."


def test_a_folder_that_cannot_be_written_costs_time_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu("Orin", (8, 7), 8 << 30, (12, 6)))
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "file/folder"))
    assert _built() == b"" and _built() == b""
