"""Devices through the command line: listed, probed, and what --device means to compress, convert and bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgerun import devices, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import machine
from edgerun.verbs.devices import probe
from tests.verbs.conftest import Ran, X, save_linear

Cli = Callable[..., Ran]
VNNI = ("avx2", "avx512f", "avx512_vnni")


@pytest.fixture
def vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine plays an x86-64 one with AVX-512 VNNI."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "isa", lambda: VNNI)


def test_devices_are_listed(cli: Cli) -> None:
    names = [device.name for device in devices.known()]
    told = cli("devices")
    assert told.code == 0 and [line.split()[0] for line in told.out.splitlines()[1:]] == names
    assert [entry["name"] for entry in json.loads(cli("devices", "--json").out)] == names


def test_one_device_with_its_sources(cli: Cli) -> None:
    told = cli("devices", "jetson-orin-nano")
    assert told.code == 0
    for fact in devices.find("jetson-orin-nano").facts.values():
        assert f"({fact.source})" in told.out
    facts = json.loads(cli("devices", "jetson-orin-nano", "--json").out)["facts"]
    assert facts["opset"] == {"value": 20, "source": "NVIDIA TensorRT 10.3 documentation: ONNX opset 20"}
    wrong = cli("devices", "jetson-orin-nan")
    assert wrong.code == 2 and "did you mean 'jetson-orin-nano'?" in wrong.err


def test_a_probe_is_a_device(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    told = cli("probe", "-o", path)
    assert told.code == 0 and str(path) in told.out
    device = devices.find(path)
    assert device.differences({}) == [], "this machine is itself"
    assert all(f.source.startswith("read from") for k, f in device.facts.items() if k != "target")
    assert device.value("onnxruntime") == registry.target("onnxruntime").device()["version"]
    assert device.value("cores") == machine.quota() and device.limits("onnxruntime") == (
        registry.target("onnxruntime").limits()
    )
    assert cli("probe").out == path.read_text()
    assert json.loads(cli("probe", "--json").out)["facts"]["target"]["value"] == "onnxruntime"
    again = cli("probe", "-o", path)
    assert again.code == 2 and "--force" in again.err
    assert cli("probe", "-o", path, "--force", "--target", "openvino").code == 0
    assert devices.find(path).target == "openvino"


def test_a_probe_needs_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10, a Jetson's, reads TOML with tomli alone: it writes it without."""

    def unreadable() -> list[devices.Device]:
        raise Unsupported("devices are TOML")

    monkeypatch.setattr(devices, "known", unreadable)
    found = probe()
    assert found.target == "onnxruntime" and devices.read("mine", found.toml()).facts == found.facts


def test_a_board_knows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(machine, "isa", lambda: ("asimd", "asimddp"))
    monkeypatch.setattr(machine, "model", lambda: "Raspberry Pi 5 Model B Rev 1.0")
    assert probe().summary == "Raspberry Pi 5"
    assert devices.find("raspberry-pi-5").differences({}) == []
    monkeypatch.setattr(machine, "model", lambda: "Orange Pi 5")
    assert devices.find("raspberry-pi-5").differences({}) == ["it calls itself 'Orange Pi 5', not 'Raspberry Pi 5'"]
    orin = devices.find("jetson-orin-nano")
    monkeypatch.setattr(machine, "model", lambda: "NVIDIA Jetson Orin Nano Developer Kit")
    assert orin.differences({"capability": "8.7"}) == []
    assert orin.differences({"capability": ""}) == ["its GPU has compute capability (none: no GPU answers), not 8.7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arch = ", "is not TOML"),
        ('arch = "x86_64"', "is not a fact"),
        ('arch = { value = "x86_64" }', "is not a fact"),
        ("arch = { value = 5, source = 'me, today' }", "has another type"),
        ("cores = { value = true, source = 'me, today' }", "has another type"),
        ("memory_gib = { value = ['lots'], source = 'me, today' }", "wanted: a list of numbers"),
        ("memory_gib = { value = [true], source = 'me, today' }", "has another type"),
        ("memory_gib = { value = [nan], source = 'me, today' }", "wanted: "),
        ("memory_gib = { value = 8, source = 'me, today' }", "has another type"),
        ("isa = { value = [5], source = 'me, today' }", "wanted: a list of text"),
        ("isa = { value = 'avx2', source = 'me, today' }", "has another type"),
        ("schemes = { value = [['w8a8']], source = 'me, today' }", "has another type"),
        ("opset = { value = -1, source = 'me, today' }", "wanted: "),
        ("frobs = { value = 5, source = 'me, today' }", "unknown fact"),
        ('arch = { value = "x86_64", source = "me, today" }', "is not complete"),
        ("summary = 5", "the summary is not text"),
    ],
)
def test_files_that_are_no_device(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    told = cli("devices", tmp_path / "bad.toml")
    assert told.code == 2 and message in told.err and "Traceback" not in told.err


def test_a_missing_file_is_misuse(cli: Cli, tmp_path: Path) -> None:
    assert cli("devices", tmp_path / "none.toml").code == 2
    assert cli("probe", "-o", tmp_path / "mine.json").code == 2


@pytest.mark.usefixtures("vnni")
@pytest.mark.parametrize(
    ("name", "target", "saturates"),
    [
        ("xeon-avx2", "openvino", True),
        ("generic-x86-64", "onnxruntime", True),
        ("intel-n100", "openvino", False),
        ("xeon-amx", "openvino", False),
        ("raspberry-pi-3", "onnxruntime", False),
        ("jetson-orin-nano", "tensorrt", False),
    ],
)
def test_the_rules_follow_the_device(monkeypatch: pytest.MonkeyPatch, name: str, target: str, saturates: bool) -> None:
    """Whatever this machine has, and whatever the environment takes away from it."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    device = devices.find(name)
    assert device.target == target
    assert registry.target(target, usable=False).quantization(device).reduced_range is saturates


@pytest.mark.usefixtures("vnni")
def test_compress_for_a_device_elsewhere(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGERUN_PLACEMENT")
    save_linear(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    words = ("compress", tmp_path / "m.onnx", "--calibration", tmp_path / "x.npz", "--preset", "fast", "--json")
    told = cli(*words, "--device", "xeon-avx2", "-o", tmp_path / "s.onnx")
    assert told.code == 0, told.err
    assert "nothing is timed" in told.err and "avx512_vnni" in told.err
    found = json.loads(told.out)
    assert (found["target"], found["device"]) == ("openvino", "xeon-avx2") and "speed" not in found
    assert found["saturation"]["can saturate"]["AVX2"] == 0
    assert Model.load(tmp_path / "s.onnx").history[-1].options["device"] == "xeon-avx2"
    asked = cli(*words, "--device", "raspberry-pi-4", "--placement", "clock", "-o", tmp_path / "t.onnx")
    assert asked.code == 3 and "this machine is not raspberry-pi-4" in asked.err
    assert not (tmp_path / "t.onnx").exists()
    other = cli(*words, "--device", "raspberry-pi-4", "--target", "openvino", "-o", tmp_path / "t.onnx")
    assert other.code == 0 and json.loads(other.out)["target"] == "openvino"


def test_compress_for_this_machine_is_timed(cli: Cli, tmp_path: Path) -> None:
    save_linear(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    cli("probe", "-o", tmp_path / "mine.toml")
    words = (
        "--calibration",
        tmp_path / "x.npz",
        "--preset",
        "fast",
        "--json",
        "--allow-slower",
        "--placement",
        "clock",
    )
    told = cli("compress", tmp_path / "m.onnx", *words, "--device", tmp_path / "mine.toml", "-o", tmp_path / "s.onnx")
    assert told.code == 0 and "speed" in json.loads(told.out)


@pytest.mark.usefixtures("vnni")
def test_the_device_makes_what_its_environment_made(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--device xeon-avx2` stores the very integers that a machine capped to AVX2 stores."""
    save_linear(
        tmp_path / "m.onnx", np.where(np.random.default_rng(0).random((8, 4)) < 0.5, 1, 0.97).astype(np.float32)
    )
    np.savez(tmp_path / "x.npz", x=np.abs(X))
    words = ("compress", tmp_path / "m.onnx", "--calibration", tmp_path / "x.npz", "--preset", "fast")
    assert cli(*words, "--device", "xeon-avx2", "-o", tmp_path / "device.onnx").code == 0
    assert cli(*words, "--target", "openvino", "-o", tmp_path / "here.onnx").code == 0
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cli(*words, "--target", "openvino", "-o", tmp_path / "capped.onnx").code == 0
    device, here, capped = (
        [t.SerializeToString() for t in onnx.load(tmp_path / f"{name}.onnx").graph.initializer]
        for name in ("device", "here", "capped")
    )
    assert device == capped != here


def test_an_engine_of_another_gpu_is_not_written(cli: Cli, tmp_path: Path) -> None:
    if registry.target("tensorrt", usable=False).available():
        pytest.skip("TensorRT is not here")
    save_linear(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    told = cli("compress", tmp_path / "m.onnx", "--calibration", tmp_path / "x.npz", "--device", "jetson-orin-nano",
               "-o", tmp_path / "s.engine")  # fmt: skip
    assert told.code == 3 and "an engine made here does not run on jetson-orin-nano" in told.err


def test_a_scheme_that_is_not_fast_there_is_told(cli: Cli, tmp_path: Path) -> None:
    save_linear(tmp_path / "m.onnx", np.ones((64, 64), np.float32))
    told = cli("compress", tmp_path / "m.onnx", "--scheme", "w8a16", "--device", "raspberry-pi-5", "-o",
               tmp_path / "s.onnx")  # fmt: skip
    assert told.code == 0 and "w8a16 is not among the schemes that are fast on raspberry-pi-5" in told.err, told.err


def _opset(path: Path, opset: int, ir_version: int) -> Path:
    proto = onnx.load(path)
    proto.opset_import[0].version, proto.ir_version = opset, ir_version
    onnx.save(proto, path)
    return path


def test_the_device_reads_what_is_written(cli: Cli, tmp_path: Path) -> None:
    """A Jetson's TensorRT reads opset 20 and IR 9: compress refuses more, convert writes no more."""
    path = _opset(save_linear(tmp_path / "m.onnx"), 21, 10)
    np.savez(tmp_path / "x.npz", x=X)
    told = cli("compress", path, "--calibration", tmp_path / "x.npz", "--device", "jetson-orin-nano", "-o",
               tmp_path / "s.onnx")  # fmt: skip
    assert told.code == 3 and "IR version 10 is newer than 9" in told.err
    done = cli("convert", path, "--device", "jetson-orin-nano", "-o", tmp_path / "c.onnx")
    assert done.code == 0, done.err
    written = onnx.load(tmp_path / "c.onnx")
    assert written.opset_import[0].version == 20 and written.ir_version == 9
    asked = cli("convert", path, "--device", "jetson-orin-nano", "--opset", 21, "-o", tmp_path / "d.onnx")
    assert asked.code == 2 and "13 to 20" in asked.err


@pytest.mark.usefixtures("vnni")
def test_bench_times_only_there(cli: Cli, tmp_path: Path) -> None:
    save_linear(tmp_path / "m.onnx")
    told = cli("bench", tmp_path / "m.onnx", "--device", "raspberry-pi-5")
    assert told.code == 3 and "it is x86_64, not aarch64" in told.err
    cli("probe", "-o", tmp_path / "mine.toml", "--target", "openvino")
    here = cli(
        "bench", tmp_path / "m.onnx", "--device", tmp_path / "mine.toml", "--seconds", 1, "--rounds", 27, "--json"
    )
    assert here.code == 0 and json.loads(here.out)["timings"][0]["target"] == "openvino"


def test_a_name_is_no_path() -> None:
    with pytest.raises(EdgerunError, match="unknown device"):
        devices.find("")
