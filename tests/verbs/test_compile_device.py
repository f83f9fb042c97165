"""`edgerun compile --device`: files for another machine are held to what it reads, and say who compared them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgerun
from edgerun import devices, registry
from edgerun.devices import Fact
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Options, machine
from tests.verbs.conftest import save_linear
from tests.verbs.test_check import Cli, needs, quantized


@pytest.mark.parametrize(
    ("device", "target", "suffix"),
    [
        ("raspberry-pi-5", "onnxruntime", ".onnx"),
        ("raspberry-pi-5", "onnxruntime", ".ort"),
        ("intel-n100", "openvino", ".xml"),
    ],
)
def test_a_file_for_a_device_says_who_compared_it(
    cli: Cli, tmp_path: Path, device: str, target: str, suffix: str
) -> None:
    needs(target)
    model, output = save_linear(tmp_path / "m.onnx"), tmp_path / f"made{suffix}"
    if devices.find(device).differences({}) == []:
        pytest.skip(f"this is {device}")
    ran = cli("compile", model, "--device", device, "-o", output)
    assert ran.code == 0 and f"for {target} on {device}" in ran.out, ran.err
    assert f"note: compared on this machine ({machine.model()}), and it" in ran.err
    told = json.loads(cli("compile", model, "--device", device, "-o", output, "--force", "--json").out)
    assert told["for_device"] == device and machine.model() in told["notes"][0] and told["check"]["runs"] == 4
    x = np.ones((2, 8), np.float32)
    np.testing.assert_allclose(edgerun.load(output).run({"x": x})["y"], edgerun.load(model).run({"x": x})["y"], 1e-5)


def test_this_machine_is_no_note(cli: Cli, tmp_path: Path) -> None:
    """A device's file is as good as a known name, and its limits hold."""
    path = tmp_path / "mine.toml"
    assert cli("probe", "-o", path).code == 0
    ran = cli("compile", save_linear(tmp_path / "m.onnx"), "--device", path, "-o", tmp_path / "made.onnx")
    assert ran.code == 0 and "on mine" in ran.out and "compared on this machine" not in ran.err
    lines = ["opset = { value = 15, source = \"a test\" }" if line.startswith("opset") else line
             for line in path.read_text().splitlines()]  # fmt: skip
    path.write_text("\n".join(lines))
    ran = cli("compile", save_linear(tmp_path / "m.onnx"), "--device", path, "-o", tmp_path / "other.onnx")
    assert ran.code == 3 and "mine does not read the model" in ran.err and "opset 17 is newer than 15" in ran.err
    assert not (tmp_path / "other.onnx").exists()


def test_of_python_too(tmp_path: Path) -> None:
    pi = devices.find("raspberry-pi-5")
    facts = {"ir_version": Fact(8, "a test"), "opset": Fact(15, "a test")}
    old, output = replace(pi, facts={**pi.facts, **facts}), tmp_path / "made.onnx"
    model = save_linear(tmp_path / "m.onnx")
    with pytest.raises(Unsupported, match="raspberry-pi-5 does not read the model[\\s\\S]*opset 17 is newer than 15"):
        edgerun.compile(model, "onnxruntime", device=old, output=output)
    assert not output.exists()
    edgerun.compile(model, "onnxruntime", device=pi, output=output)
    assert output.exists(), "nothing is known of what it reads: what is installed here counts"


def test_sums_that_saturate_there_are_told(cli: Cli, tmp_path: Path) -> None:
    needs("openvino")
    path = quantized(tmp_path / "q.onnx")
    ran = cli("compile", path, "--target", "openvino", "--device", "xeon-avx2", "-o", tmp_path / "old.xml")
    assert "4 of 4 output channels of a layer can saturate on xeon-avx2" in ran.err, ran.err
    ran = cli("compile", path, "--target", "openvino", "--device", "xeon-avx512-vnni", "-o", tmp_path / "new.xml")
    assert "saturate" not in ran.err


BF16, KLEIDI = "mlas.enable_gemm_fastmath_arm64_bfloat16=1", "mlas.disable_kleidiai=1"


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
@pytest.mark.parametrize(
    ("device", "option", "refusal"),
    [
        ("jetson-thor", BF16, ""),
        ("jetson-thor", KLEIDI, ""),
        ("raspberry-pi-5", KLEIDI, ""),
        ("raspberry-pi-5", BF16, "raspberry-pi-5 has none of bf16"),
        ("jetson-orin-nano", BF16, "jetson-orin-nano has none of bf16"),
        ("raspberry-pi-4", KLEIDI, "raspberry-pi-4 has none of asimddp, i8mm, sme, sme2"),
        ("intel-n100", BF16, "intel-n100 is x86_64"),
    ],
)
def test_kernels_of_arm_are_the_device_s(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, device: str, option: str, refusal: str
) -> None:
    """By its instruction sets, as Arm and LLVM tell of its cores; this machine, which has others, is not asked."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "isa", lambda: ("avx2", "avx512f"))
    model, output = save_linear(tmp_path / "m.onnx"), tmp_path / f"made{suffix}"
    words = ("--target", "onnxruntime", "--device", device, "--option", option)
    ran, looked = cli("compile", model, *words, "-o", output), cli("check", model, *words)
    if refusal:
        assert (ran.code, looked.code) == (3, 3) and not output.exists()
        assert f"got: {refusal}" in ran.err and f"got: {refusal}" in looked.err
        with pytest.raises(Unsupported, match=refusal):
            edgerun.compile(model, "onnxruntime", Options(1, dict([option.split("=")])), device=device)
        return
    assert (ran.code, looked.code) == (0, 0), ran.err + looked.err
    assert f"compared without --option {option}, which this machine has no kernels for" in ran.out
    assert f"looked at without {option}" in looked.err and "does not keep" not in ran.out
    told = json.loads(cli("compile", model, *words, "-o", output, "--force", "--json").out)
    assert told["untried"] == [option] and told["again"] == []
    np.savez(tmp_path / "x.npz", x=np.ones((2, 8), np.float32))
    own = cli("run", output, "--feeds", tmp_path / "x.npz", "--option", option, "-o", tmp_path / "y.npz")
    assert own.code == 3 and "this CPU is x86_64" in own.err, "opened here, this machine's CPU decides"


def test_python_is_told_what_writes_recipes(tmp_path: Path) -> None:
    model, output = save_linear(tmp_path / "m.onnx"), tmp_path / "m.recipe"
    with pytest.raises(EdgerunError, match="onnxruntime does not write this kind of file") as error:
        edgerun.compile(model, "onnxruntime", output=output)
    assert error.value.do is None, "the command would not either"
    needs("tensorrt")
    with pytest.raises(EdgerunError, match="edgerun compile MODEL.onnx --target tensorrt -o m.recipe"):
        edgerun.compile(model, "tensorrt", output=output)


@pytest.mark.parametrize(
    ("suffix", "options", "again"),
    [
        (".onnx", ["graph_optimization_level=basic", "SPINNING=0", "MEMORY=small"], [0, 1, 2]),
        (".onnx", ["FORMAT=onnx", "session.disable_quant_qdq=1"], [1]),
        (".ort", ["graph_optimization_level=basic", "session.disable_quant_qdq=1", "SPINNING=0"], [2]),
        (".ort", ["FORMAT=ort"], []),
        (".xml", ["INFERENCE_PRECISION_HINT=f32"], [0]),
    ],
)
def test_options_that_the_file_does_not_keep_are_told(
    cli: Cli, tmp_path: Path, suffix: str, options: list[str], again: list[int]
) -> None:
    """An .onnx is the model and no more; an .ort is a graph that was optimized as the options say."""
    needs("openvino" if suffix == ".xml" else "onnxruntime")
    command = ["compile", save_linear(tmp_path / "m.onnx"), "-o", tmp_path / f"made{suffix}"]
    words, lost = [word for option in options for word in ("--option", option)], [options[index] for index in again]
    ran = cli(*command, *words)
    assert ran.code == 0 and ("which the file does not keep" in ran.out) == bool(lost), ran.err
    assert not lost or " ".join(f"--option {option}" for option in lost) + ", which" in ran.out
    assert json.loads(cli(*command, *words, "--force", "--json").out)["again"] == lost


def test_a_target_may_tell_what_all_its_files_keep(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another package's may, whose files are of one kind: patterns, and not patterns by suffix."""
    monkeypatch.setattr(registry.target("onnxruntime"), "keeps", {"graph_*"})
    words = ("--option", "graph_optimization_level=basic", "--option", "SPINNING=0")
    ran = cli("compile", save_linear(tmp_path / "m.onnx"), "-o", tmp_path / "made.onnx", *words, "--json")
    assert ran.code == 0 and json.loads(ran.out)["again"] == ["SPINNING=0"], ran.err


@pytest.mark.parametrize(
    ("target", "suffixes"), [("onnxruntime", {".onnx", ".ort"}), ("openvino", set()), ("tensorrt", {".engine"})]
)
def test_what_files_keep_is_what_the_target_takes(target: str, suffixes: set[str]) -> None:
    found = registry.target(target, usable=False)
    taken = {key.partition("=")[0] for line in found.takes for key in line.split(", ")}
    assert set(vars(found)["keeps"]) == suffixes
    for suffix, keys in vars(found)["keeps"].items():
        assert suffix in registry.written(target)
        assert all(key in taken or f"{key.partition('.')[0]}.*" in taken for key in keys)
