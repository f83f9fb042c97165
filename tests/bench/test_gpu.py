"""The table of GPUs: every variant runs, or says why not; its feeds and formats are right where the CPU can tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import gpu
from bench.gpu_nets import NETS, PRECISIONS
from edgerun import registry
from edgerun.targets import _tensorrt_library as tensorrt

TENSORRT = tuple(variant for variant in gpu.VARIANTS if variant.builder)
idle = registry.target("tensorrt", usable=False).available() or registry.target("tensorrt").runnable()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder, net = tmp_path_factory.mktemp("nets"), NETS["mobilenet"]
    found = {precision: folder / f"mobilenet_{precision}.onnx" for precision in PRECISIONS}
    for precision, path in found.items():
        net(precision).save(path)
    return found


def test_every_format_has_its_row_of_tensorrt() -> None:
    assert {(v.precision, bool(v.extra)) for v in TENSORRT} == {(p, graph) for p in PRECISIONS for graph in (0, 1)}
    keys = {key.partition("=")[0] for key in registry.target("tensorrt", usable=False).takes}
    assert {key for variant in TENSORRT for key in variant.extra} <= keys
    assert len({variant.name for variant in gpu.VARIANTS}) == len(gpu.VARIANTS)


@pytest.mark.skipif(not idle, reason="TensorRT runs here")
def test_what_does_not_run_says_why(paths: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built for it, and the others are timed."""
    monkeypatch.setattr(gpu, "SECONDS", 0.5)
    monkeypatch.setattr(gpu, "ROUNDS", 18)
    first, *others = gpu.measured(paths, 2, (gpu.ON_CPU, *TENSORRT))
    assert first["sqnr_db"] is None and first["runs"] >= 9 and first["p50_ms"]["value"] > 0
    assert [row["variant"] for row in others] == [variant.name for variant in TENSORRT]
    for row in others:
        assert str(idle) in row["failed"] and f"did not run: {row['failed']}" in gpu._line(row)
    assert not list(paths["fp32"].parent.glob("*.engine"))


@pytest.mark.skipif(
    registry.target("tensorrt", usable=False).available() is not None or tensorrt.chosen() != "tensorrt_rtx",
    reason="no tensorrt_rtx",
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engines_that_would_be_timed_are_built(
    paths: Mapping[str, Path], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the library itself, which needs no GPU for that; once for a batch, whichever variants run it."""
    target = registry.target("tensorrt")
    monkeypatch.setattr(target, "runnable", lambda: None)
    plain, graph = (v for v in TENSORRT if v.precision == precision)
    engine = plain.file(paths[precision], 4)
    assert target.contents(engine).target == "tensorrt"  # type: ignore[attr-defined]
    monkeypatch.setattr(target, "compile", lambda *words: pytest.fail("it is built again"))
    assert graph.file(paths[precision], 4) == engine and engine.stat().st_size > 10_000


def test_the_cpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SECONDS", 0.5)
    monkeypatch.setattr(gpu, "ROUNDS", 18)
    monkeypatch.setattr(gpu, "CELLS", gpu.CELLS[:1])
    done = CliRunner().invoke(gpu.main, ["--cpu", "-o", str(tmp_path / "gpu.json")], catch_exceptions=False)
    assert done.exit_code == 0 and "fp32, CPU" in done.output and "TensorRT" not in done.output
    (cell,) = json.loads((tmp_path / "gpu.json").read_text())["cells"]
    assert (cell["net"], cell["batch"]) == gpu.CELLS[0] and [row["variant"] for row in cell["rows"]] == ["fp32, CPU"]
