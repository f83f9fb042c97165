"""What a device asked for means to a model: 8-bit floats, DLA cores, versions of runtimes, what is told of a scheme."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerun import devices, registry
from edgerun.passes import Limits
from edgerun.verbs import fitting, recipe
from tests.verbs.conftest import Ran, X, save_linear
from tests.verbs.test_check import needs, save
from tests.verbs.test_devices import _opset as opset

Cli = Callable[..., Ran]


def floats(path: Path) -> Path:
    """A MatMul between quantizers of 8-bit floats."""
    kind = ml_dtypes.float8_e4m3fn
    given: dict[str, np.ndarray] = {
        "s": np.array(0.05, np.float32), "z": np.array(0, kind), "w": np.ones((8, 8), kind),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], "weights"),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], "product"),
    ]
    return save(path, nodes, weights=given, opset=19, ir_version=9)


def test_8_bit_floats_do_not_run_on_a_gpu_that_has_none(cli: Cli, tmp_path: Path) -> None:
    """TensorRT's parser takes them for any GPU; an Orin's, of 8.7, has none, and a Thor's has."""
    needs("tensorrt")
    path, part, fix = floats(tmp_path / "m.onnx"), tmp_path / "part.onnx", tmp_path / "fix.onnx"
    told = cli("check", path, "--device", "jetson-orin-nano", "--subgraph", part, "--fix", fix)
    reason = "the GPU has compute capability 8.7, and fp8 needs 8.9"
    assert told.code == 1 and told.out.count(reason) == 3, told.out + told.err
    assert f"does not run: quantize (QuantizeLinear): {reason}" in told.out
    assert "another scheme: w8a8, w16a16" in told.out and "not rewritten: " in told.out and not fix.exists()
    assert [node.op_type for node in onnx.load(part).graph.node] == ["QuantizeLinear"]
    assert cli("check", path, "--device", "jetson-thor").code == 0
    assert cli("check", path, "--target", "onnxruntime", "--device", "jetson-orin-nano").code == 0


def test_what_is_told_of_a_scheme_has_its_source(cli: Cli, tmp_path: Path) -> None:
    """Cortex-A76 has dot products, for which ONNX Runtime's kernels of w4a8 are; nothing was measured on ARM."""
    save_linear(tmp_path / "m.onnx", np.ones((64, 64), np.float32))
    words = ("compress", tmp_path / "m.onnx", "--scheme", "w4a8", "-o", tmp_path / "s.onnx", "--force", "--device")
    told = [cli(*words, f"raspberry-pi-{number}") for number in (4, 5)]
    assert [ran.code for ran in told] == [0, 0], told[0].err + told[1].err
    assert "w4a8 is not among the schemes that are fast on raspberry-pi-4" in told[0].err
    assert "has not been measured on ARM" in told[0].err and "not among the schemes" not in told[1].err


@pytest.mark.parametrize("name", ["jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin"])
def test_a_gpu_without_8_bit_floats_is_not_compressed_for_in_them(cli: Cli, tmp_path: Path, name: str) -> None:
    needs("tensorrt")
    save_linear(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    words = ("compress", tmp_path / "m.onnx", "--calibration", tmp_path / "x.npz", "--scheme", "fp8", "--device")
    told = cli(*words, name, "-o", tmp_path / "s.onnx")
    assert told.code == 3 and f"tensorrt has no kernels for fp8 on {name}" in told.err, told.err
    assert "compute capability 8.7, and fp8 needs 8.9" in told.err and "wanted: w8a8, w16a16" in told.err
    assert not (tmp_path / "s.onnx").exists()
    thor = cli(*words, "jetson-thor", "-o", tmp_path / "s.onnx")
    assert thor.code == 0 and "not among the schemes" not in thor.err, thor.err


def test_the_version_on_the_device_counts_for_another_target_too(cli: Cli, tmp_path: Path) -> None:
    """An Orin's own target is tensorrt; its onnxruntime, 1.23, reads opset 23 and IR 11."""
    path = opset(save_linear(tmp_path / "m.onnx"), 24, 12)
    np.savez(tmp_path / "x.npz", x=X)
    orin = ("--device", "jetson-orin-nano", "--target", "onnxruntime")
    told = cli("compress", path, "--calibration", tmp_path / "x.npz", *orin, "-o", tmp_path / "s.onnx")
    assert told.code == 3 and "IR version 12 is newer than 11, the newest read there" in told.err, told.err
    looked = cli("check", path, *orin)
    version = registry.target("onnxruntime").device()["version"]
    assert looked.code == 1 and "newest read on jetson-orin-nano" in looked.out, looked.out
    assert f"looked at with onnxruntime {version}; jetson-orin-nano has onnxruntime 1.23.2" in looked.err
    done = cli("convert", path, *orin, "--opset", 23, "-o", tmp_path / "c.onnx")
    assert done.code == 0, done.err
    written = onnx.load(tmp_path / "c.onnx")
    assert written.opset_import[0].version == 23 and written.ir_version <= 11
    asked = cli("convert", path, *orin, "--opset", 24, "-o", tmp_path / "d.onnx")
    assert asked.code == 2 and "13 to 23" in asked.err


def test_what_a_release_reads_is_what_the_installed_one_does() -> None:
    """The table against the runtime itself; a release before the first that is known tells nothing."""
    target = registry.target("onnxruntime")
    facts = devices.find("jetson-orin-nano").facts
    for version, expected in ((target.device()["version"], target.limits()), ("1.19.2", target.limits()),
                              ("1.22.1", Limits(10, 22)), ("1.32.0", Limits(14, 28))):  # fmt: skip
        given = devices.Device("own", "", {**facts, "onnxruntime": devices.Fact(version, "this test")})
        assert fitting.limits(given, "onnxruntime") == expected, version


def test_a_version_of_openvino_on_the_device_counts(cli: Cli, tmp_path: Path) -> None:
    """OpenVINO 2025 is built with ONNX 1.17, which defines opset 22; the version here is another."""
    needs("openvino")
    board = devices.find("intel-n100")
    for version, newest in (("2025.1", 22), ("2024.6.0", 21)):
        facts = {**board.facts, "openvino": devices.Fact(version, "this test")}
        (tmp_path / "own.toml").write_text(devices.Device("own", "", facts).toml())
        own = ("--device", tmp_path / "own.toml")
        path = opset(save_linear(tmp_path / "m.onnx"), newest + 1, 11)
        told = cli("check", path, *own)
        assert told.code == 1 and f"opset {newest + 1} is newer than {newest}, the newest read on own" in told.out
        assert "openvino from" not in told.err, "the version is known"
        done = cli("convert", path, *own, "-o", tmp_path / "c.onnx", "--force")
        written = onnx.load(tmp_path / "c.onnx")
        assert done.code == 0 and (written.opset_import[0].version, written.ir_version) == (newest, 10), done.err


@pytest.mark.parametrize(
    ("device", "target", "version", "ir_version", "release"),
    [
        ("raspberry-pi-5", "onnxruntime", 21, 10, None),
        ("raspberry-pi-5", "onnxruntime", 22, 10, "1.21"),
        ("raspberry-pi-5", "onnxruntime", 22, 11, "1.23"),
        ("raspberry-pi-5", "onnxruntime", 26, 13, "1.25"),
        ("intel-n100", "openvino", 21, 10, None),
        ("intel-n100", "openvino", 23, 11, "2026.4"),
        ("jetson-orin-nano", "onnxruntime", 23, 11, None),
    ],
)
def test_a_release_that_reads_the_model_is_told(
    cli: Cli, tmp_path: Path, device: str, target: str, version: int, ir_version: int, release: str | None
) -> None:
    """Which version a board has that names none is up to its owner; nothing is said where every one reads the model."""
    needs(target)
    if devices.find(device).differences({}) == []:
        pytest.skip(f"this is {device}")
    path = opset(save_linear(tmp_path / "m.onnx"), version, ir_version)
    told = cli("check", path, "--device", device, "--target", target)
    assert told.code == 0, told.err
    assert (f"is read by {target} from {release} on; which {device} has is not known" in told.err) == bool(release)
    assert release is not None or "is read by" not in told.err


@pytest.mark.parametrize(
    ("device", "words", "code", "message"),
    [
        ("jetson-orin-nano", ["DLA=0"], 3, "jetson-orin-nano has no DLA core 0\n  got: 0 cores\n  do: leave DLA out"),
        ("jetson-thor", ["DLA=0"], 3, "jetson-thor has no DLA core 0"),
        ("jetson-agx-orin", ["DLA=2"], 2, "DLA is the number of a DLA core"),
        ("jetson-agx-orin", ["DLA=1"], 0, ""),
        ("jetson-orin-nx", ["DLA=1", "--size", "n=4,4,4"], 0, ""),
        ("jetson-orin-nx", ["DLA=1", "--size", "n=1,2,4"], 3, "a DLA takes one size of 'n'\n  got: 1 to 4"),
    ],
)
def test_a_dla_is_asked_for_where_one_is(
    place: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch, device: str, words: list[str], code: int, message: str
) -> None:
    """An open batch is one sample, since a DLA's engine is for one size (NVIDIA's documentation)."""
    monkeypatch.chdir(place.folder)
    shape: list[str | int | None] = ["n", 8]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, shape)],
        [numpy_helper.from_array(np.eye(8, dtype=np.float16), "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "half.onnx")
    ran = cli("compile", "half.onnx", "--device", device, "--option", *words, "-o", "made.recipe")
    assert ran.code == code and message in ran.err and "Traceback" not in ran.err, ran.err
    if code == 0:
        count = 4 if "--size" in words else 1
        assert {feed["x"].shape for feed in recipe.read(Path("made.recipe")).feeds} == {(count, 8)}
    float32 = cli("compile", place.a, "--device", "jetson-agx-orin", "--option", "DLA=0", "-o", "other.recipe")
    assert float32.code == 3 and "got: FLOAT\n" in float32.err and "--scheme w16a16" in float32.err


def test_a_recipe_has_no_floats_that_its_gpu_has_not(place: Any, cli: Cli) -> None:
    path = floats(place.folder / "floats.onnx")
    ran = cli("compile", path, "--device", "jetson-orin-nano", "-o", place.folder / "made.recipe")
    assert ran.code == 3 and "does not run on tensorrt on jetson-orin-nano" in ran.err, ran.err
    assert "quantize (QuantizeLinear): the GPU has compute capability 8.7, and fp8 needs 8.9" in ran.err
    thor = cli("compile", path, "--device", "jetson-thor", "-o", place.folder / "made.recipe")
    assert thor.code == 0, thor.err


@pytest.mark.parametrize("installed", [True, False])
def test_a_recipe_is_of_a_model_that_its_device_reads(
    place: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    """What the device says is held to, without TensorRT here too; where it says nothing then, nobody knows."""
    new, output, own = place.folder / "new.onnx", place.folder / "made.recipe", place.folder / "own.toml"
    newer = onnx.load(place.a)
    newer.opset_import[0].version, newer.ir_version = 23, 11
    onnx.save(newer, new)
    if not installed:
        monkeypatch.setattr(registry.target("tensorrt", usable=False), "available", lambda: "needs tensorrt_rtx")
    ran = cli("compile", new, "--device", "jetson-agx-orin", "-o", output)
    assert ran.code == 3 and "jetson-agx-orin does not read the model" in ran.err and not output.exists(), ran.err
    assert "IR version 11 is newer than 9" in ran.err and "--fix FILE.onnx" in ran.err
    lines = devices.find("jetson-agx-orin").toml().splitlines()
    own.write_text("\n".join(line for line in lines if not line.startswith(("opset", "ir_version"))))
    assert cli("compile", new, "--device", own, "-o", output).code == 0
