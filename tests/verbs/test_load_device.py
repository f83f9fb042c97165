"""`load(device=…)`: a board's name is its target; any other word is the target's own for the hardware."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgerun
from edgerun import devices, registry
from edgerun.cli import edgerun as commands
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options, machine
from tests.verbs.conftest import X, save_linear


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_linear(tmp_path / "m.onnx")


def spied(monkeypatch: pytest.MonkeyPatch, target: str) -> list[Options]:
    """The options that `target` is opened with."""
    seen, found = list[Options](), registry.target(target)
    opens = found.load

    def load(engine: Any, options: Options) -> Any:
        seen.append(options)
        return opens(engine, options)

    monkeypatch.setattr(found, "load", load)
    return seen


@pytest.mark.parametrize(("target", "key"), [("openvino", "DEVICE"), ("onnxruntime", "PROVIDER")])
def test_hardware_is_the_targets_own_option(
    model: Path, target: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch, target)
    with edgerun.load(model, target, device="CPU") as session:
        assert session.run({"x": X[:2]})["y"].shape == (2, 4)
    assert seen[0].extra == {key: "CPU"}
    assert any(line.startswith(f"{key}=") for line in registry.target(target).takes), "it is a listed option"


def test_hardware_that_is_not_here_is_refused_as_the_option_is(model: Path) -> None:
    for target, device, extra in (
        ("openvino", "NPU.7", {"DEVICE": "NPU.7"}),
        ("onnxruntime", "TPU", {"PROVIDER": "TPU"}),
    ):
        with pytest.raises(EdgerunError) as short:
            edgerun.load(model, target, device=device)
        with pytest.raises(EdgerunError) as long:
            edgerun.load(model, target, Options(extra=extra))
        assert str(short.value) == str(long.value) and type(short.value) is type(long.value)


def test_without_a_target_the_file_says_which(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch, "onnxruntime")
    edgerun.load(model, device="CPU").close()
    edgerun.load(model.read_bytes(), device="CPU").close()
    engine = edgerun.compile(Model.load(model), "openvino")
    edgerun.load(engine, device="CPU").close()
    assert [options.extra for options in seen[:2]] == [{"PROVIDER": "CPU"}] * 2


def test_the_command_line_says_it_too(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm, intel = spied(monkeypatch, "onnxruntime"), spied(monkeypatch, "openvino")
    np.savez(tmp_path / "feeds.npz", x=X[:2])
    np.savez(tmp_path / "labelled.npz", x=X, y=np.zeros(len(X), np.int64))
    feeds = ["--feeds", str(tmp_path / "feeds.npz"), "-o", str(tmp_path / "out.npz"), "--force"]
    for command, words in (("run", feeds), ("eval", ["--data", str(tmp_path / "labelled.npz")])):
        for device in ("intel-n100", "CPU"):
            result = CliRunner().invoke(commands, [command, str(model), *words, "--device", device])
            assert result.exit_code == 0, result.output
    assert len(intel) == 2, "the board's target"
    assert [options.extra for options in arm] == [{"PROVIDER": "CPU"}] * 2, "the word of the file's own target"
    result = CliRunner().invoke(commands, ["run", str(model), *feeds, "--device", "TPU"])
    assert isinstance(result.exception, EdgerunError) and "TPU" in str(result.exception)


def test_an_open_session_is_not_moved(model: Path) -> None:
    with edgerun.load(model) as session, pytest.raises(EdgerunError, match="opened"):
        edgerun.predict(session, np.zeros((2, 2, 3), np.uint8), device="CPU")


def test_a_board_is_its_target(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm, intel = spied(monkeypatch, "onnxruntime"), spied(monkeypatch, "openvino")
    edgerun.load(model, device="raspberry-pi-5").close()
    edgerun.load(model, device="intel-n100").close()
    own = tmp_path / "mine.toml"
    own.write_text(devices.find("intel-n100").toml())
    edgerun.load(model, device=own).close()
    edgerun.load(model, "onnxruntime", device="intel-n100").close()
    assert [len(arm), len(intel)] == [2, 2], "a target that is named goes before the board's"
    assert not any(options.extra for options in (*arm, *intel))


def test_isolated_sessions_too(model: Path) -> None:
    with edgerun.load(model, "openvino", device="CPU", isolated=True) as session:
        assert np.allclose(session.run({"x": X[:2]})["y"], edgerun.load(model).run({"x": X[:2]})["y"], atol=1e-5)


def test_what_has_no_choice_says_so(model: Path) -> None:
    for target in ("reference", "tensorrt"):
        if registry.target(target, usable=False).available():
            continue
        with pytest.raises(EdgerunError, match=f"{target} has no choice of hardware[\\s\\S]*raspberry-pi-5"):
            edgerun.load(model, target, device="GPU")
    with pytest.raises(EdgerunError, match="one target"):
        edgerun.load(model, "auto", device="GPU")
    with pytest.raises(EdgerunError, match="two devices are asked for"):
        edgerun.load(model, "openvino", Options(extra={"DEVICE": "CPU"}), device="GPU")
    with pytest.raises(EdgerunError, match="takes an execution provider, not hardware"):
        edgerun.load(model, device="GPU")
    with pytest.raises((EdgerunError, Unsupported), match="cannot read the device"):
        edgerun.load(model, device="missing.toml")


def test_a_board_that_is_misspelt_is_told_its_neighbours(model: Path) -> None:
    with pytest.raises(EdgerunError, match="unknown device 'raspberry-pi-6'") as told:
        edgerun.load(model, device="raspberry-pi-6")
    assert "raspberry-pi" in str(told.value.do) and "raspberry-pi" in str(told.value.wanted)


@pytest.mark.parametrize(
    ("target", "device", "told", "not_told"),
    [
        (
            "onnxruntime",
            "GPU",
            "PROVIDER=CUDA (NVIDIA's), PROVIDER=TENSORRT (NVIDIA's), PROVIDER=OPENVINO with",
            "CPU'",
        ),
        ("onnxruntime", "gpu", "PROVIDER=OPENVINO with DEVICE=GPU, PROVIDER=QNN with DEVICE=GPU", "CPU'"),
        ("onnxruntime", "NPU", "wanted: PROVIDER=OPENVINO with DEVICE=NPU", "CPU'"),
        ("onnxruntime", "TPU", "one of ACL, CPU", "did you mean"),
        ("onnxruntime", "cuda", "did you mean 'CUDA'?", "DEVICE"),
        ("onnxruntime", "cpu", "did you mean 'CPU'?", "DEVICE"),
        ("openvino", "gpu", "did you mean 'GPU'?", "the CPU"),
        ("openvino", "NPU", "install Intel's driver of the NPU", "did you mean"),
    ],
)
def test_no_gpu_is_taken_for_a_mistyped_cpu(model: Path, target: str, device: str, told: str, not_told: str) -> None:
    if reason := registry.target(target, usable=False).available():
        pytest.skip(reason)
    with pytest.raises(EdgerunError) as error:
        edgerun.load(model, target, device=device)
    assert told in str(error.value) and not_told not in str(error.value)


VERBS: dict[str, tuple[str, ...]] = {
    "run": ("--feeds", "x.npz", "-o", "y.npz", "--force"),
    "eval": ("--baseline", "m.onnx", "--data", "x.npz"),
    "compare": ("m.onnx", "--data", "x.npz"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_another_machine_s_board_is_told(
    model: Path, verb: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a board, whatever was opened for it; nothing where this machine may be it."""
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("edgerun.runtime.machine.isa", lambda: ("avx2", "avx512f", "avx512_vnni"))
    arrays: dict[str, Any] = {"x": X[:2]} | ({} if verb == "run" else {"labels": np.zeros(2, np.int64)})
    np.savez("x.npz", **arrays)
    facts = devices.find("xeon-avx2").toml().replace('"openvino"', '"onnxruntime"', 1)
    own = facts.replace('value = ["avx2"]', 'value = ["avx2", "avx512f", "avx512_vnni"]')
    assert own != facts
    for name, text in ((f"old-{verb}", facts), (f"own-{verb}", own)):
        Path(f"{name}.toml").write_text(text)
        ran = CliRunner().invoke(commands, [verb, "m.onnx", *VERBS[verb], "--device", f"{name}.toml"])
        assert ran.exit_code == 0, ran.output
    (told,) = (record.getMessage() for record in caplog.records if record.name == "edgerun")
    assert f"runs on this machine, which is not old-{verb} (its instruction sets are avx2" in told
    assert "edgerun check" in told


def test_the_note_goes_to_stderr(model: Path) -> None:
    device = "raspberry-pi-3" if machine.arch() != "aarch64" else "xeon-avx2"
    command = [sys.executable, "-m", "edgerun", "compare", str(model), str(model), "--data", "random:2", "--json"]
    ran = subprocess.run([*command, "--device", device], capture_output=True, text=True, check=True)
    assert f"note: it runs on this machine, which is not {device}" in ran.stderr and device not in ran.stdout


def test_python_takes_a_board_by_name_file_or_itself(model: Path, tmp_path: Path) -> None:
    """Every verb that takes one."""
    x, own, board = {"x": X[:2]}, tmp_path / "mine.toml", devices.find("raspberry-pi-5")
    own.write_text(board.toml())
    for device in ("raspberry-pi-5", own, board):
        with edgerun.load(model, device=device) as session:
            expected = session.run(x)["y"]
        with edgerun.load(model, device=device, isolated=True) as session:
            assert np.array_equal(session.run(x)["y"], expected)
        assert edgerun.compile(model, "onnxruntime", device=device).check is not None
        assert edgerun.compile(model, ["onnxruntime"], device=device).target == "onnxruntime"
        assert edgerun.check(model, device=device).device in (board.name, own.stem)
        assert edgerun.compare(model, model, data="random:2", device=device).samples == 2
        np.savez(tmp_path / "labelled.npz", x=X, y=np.zeros(len(X), np.int64))
        edgerun.evaluate(model, tmp_path / "labelled.npz", device=device)
        with pytest.raises(EdgerunError, match="tensorrt does not run on"):
            edgerun.compile(model, "tensorrt", device=device)
    with pytest.raises(EdgerunError, match="did you mean 'raspberry-pi-5'"):
        edgerun.compile(model, "onnxruntime", device="raspbery-pi-5")
