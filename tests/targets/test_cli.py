"""`edgerun run` and `edgerun targets`, through the command line's own door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgerun import cli, registry
from edgerun.model import Model

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Exit code, stdout and stderr of one command."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["edgerun", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def folder(dense: Model, tmp_path: Path) -> Path:
    dense.save(tmp_path / "dense.onnx")
    np.savez(tmp_path / "x.npz", x=np.arange(12, dtype=np.float32).reshape(2, 6))
    return tmp_path


@pytest.mark.parametrize(
    "target", [[], ["--target", "onnxruntime"], ["--target", "openvino"], ["--target", "reference"]]
)
def test_run_writes_the_outputs(folder: Path, call: Call, dense: Model, target: list[str]) -> None:
    code, out, _ = call("run", folder / "dense.onnx", "--feeds", folder / "x.npz", "-o", folder / "y.npz", *target)
    assert (code, out) == (0, "y: float32[2, 4]\n")
    weight = np.frombuffer(dense.to_proto().graph.initializer[0].raw_data, np.float32).reshape(6, 4)
    with np.load(folder / "y.npz", allow_pickle=False) as written:
        assert list(written) == ["y"]
        np.testing.assert_allclose(written["y"], np.arange(12).reshape(2, 6) @ weight, rtol=1e-5)


def test_run_twice_gives_the_same_bytes(folder: Path, call: Call) -> None:
    arguments = ("run", folder / "dense.onnx", "--feeds", folder / "x.npz", "--threads", 1, "-o")
    assert call(*arguments, folder / "a.npz")[0] == call(*arguments, folder / "b.npz")[0] == 0
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()


def test_json_on_stdout(folder: Path, call: Call) -> None:
    _, out, _ = call("run", folder / "dense.onnx", "--feeds", folder / "x.npz", "-o", folder / "y.npz", "--json")
    assert json.loads(out)["outputs"] == [{"name": "y", "dtype": "float32", "shape": [2, 4]}]


def _write(path: Path, content: bytes | dict[str, np.ndarray]) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not a zip file", "cannot read"),
        ({}, "input 'x' is missing"),
        ({"z": np.zeros(3)}, "input 'x' is missing"),
        ({"x": np.zeros((2, 6), np.float32), "z": np.zeros(3)}, "unknown input 'z'"),
        ({"x": np.zeros((2, 6))}, "wrong dtype"),
        ({"x": np.zeros((2, 7), np.float32)}, "wrong shape"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "neither numeric nor text"),
        ({"x": np.array([["a"] * 6])}, "wrong dtype"),
    ],
)
def test_bad_feeds(folder: Path, call: Call, content: bytes | dict[str, np.ndarray], message: str) -> None:
    _write(folder / "bad.npz", content)
    code, _, err = call("run", folder / "dense.onnx", "--feeds", folder / "bad.npz", "-o", folder / "y.npz")
    assert code == 2 and err.startswith("error: ") and message in err and "Traceback" not in err
    assert not (folder / "y.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx", "--feeds", "x.npz", "-o", "y.npz"], "does not exist"),
        (["dense.onnx", "--feeds", "none.npz", "-o", "y.npz"], "does not exist"),
        (["dense.onnx", "--feeds", "x.npz", "-o", "no/y.npz"], "folder does not exist"),
        (["dense.onnx", "--feeds", "x.npz", "-o", "y.txt"], ".npz"),
        (["dense.onnx", "--feeds", "bad.npz", "-o", "x.npz"], "--force"),
        (["dense.onnx", "--feeds", "x.npz", "-o", "x.npz", "--force"], "would replace what it is made from"),
        (["dense.onnx", "--feeds", "x.npy", "-o", "y.npz"], ".npz"),
        (["dense.onnx", "--feeds", "x.npz", "-o", "y.npz", "--target", "openvno"], "did you mean 'openvino'"),
        (["x.npz", "--feeds", "x.npz", "-o", "y.npz"], "no target reads"),
        (["x.npz", "--feeds", "x.npz", "-o", "y.npz", "--target", "openvino"], "does not read"),
        (["dense.onnx", "--feeds", "x.npz", "-o", "y.npz", "--threads", "-1"], "--threads"),
    ],
)
def test_misuse(folder: Path, call: Call, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, err = call("run", *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_missing_target_is_exit_3(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.target("openvino", usable=False), "available", lambda: "needs openvino: pip install x")
    code, _, err = call(
        "run", folder / "dense.onnx", "--feeds", folder / "x.npz", "-o", folder / "y.npz", "--target", "openvino"
    )
    assert code == 3 and "pip install x" in err
    code, out, _ = call("targets")
    assert code == 0 and "unavailable: needs openvino: pip install x" in out


def test_targets_are_listed(call: Call) -> None:
    code, out, _ = call("targets")
    assert code == 0 and all(name in out for name in registry.names("target"))
    _, out, _ = call("targets", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert list(listed) == registry.names("target")
    assert listed["onnxruntime"]["opset"] >= 20 and "w8a8" in listed["onnxruntime"]["schemes"]


def test_options_of_a_target(call: Call, folder: Path) -> None:
    found = registry.target("openvino", usable=False)
    if reason := found.available():
        pytest.skip(reason)
    run = ["run", folder / "dense.onnx", "--feeds", folder / "x.npz", "--target", "openvino"]
    code, _, err = call(*run, "-o", folder / "y.npz", "--option", "DEVICE=HETERO:CPU")
    assert code == 0, err
    code, _, err = call(*run, "-o", folder / "z.npz", "--option", "DEVICE=NPU", "--option", "CACHE_DIR=kept")
    assert code in (0, 3) and (code == 0 or ("no NPU here" in err and "there are: CPU" in err))
    assert (folder / "z.npz").exists() == (code == 0)


def test_run_takes_the_target_with_the_model(call: Call, folder: Path) -> None:
    for target in ("reference", "openvino"):
        if registry.target(target, usable=False).available():
            continue
        out = folder / f"{target}.npz"
        ran = call("run", f"{folder / 'dense.onnx'}@{target}", "--feeds", folder / "x.npz", "-o", out)
        assert ran == (0, "y: float32[2, 4]\n", "")
        assert np.load(out)["y"].shape == (2, 4)
    code, _, err = call("run", f"{folder / 'dense.onnx'}@openvno", "--feeds", folder / "x.npz", "-o", folder / "n.npz")
    assert code == 2 and "unknown target 'openvno'" in err


def test_compile_says_which_target_auto_took(call: Call, folder: Path) -> None:
    code, out, _ = call("compile", folder / "dense.onnx", "-o", folder / "a.ort", "--target", "auto")
    assert code == 0 and out.splitlines()[0].endswith(", for onnxruntime")


@pytest.mark.skipif(bool(registry.target("openvino", usable=False).available()), reason="needs openvino")
def test_compile_says_which_options_the_file_does_not_keep(call: Call, folder: Path) -> None:
    hint = "PERFORMANCE_HINT=LATENCY"
    arguments = ("compile", folder / "dense.onnx", "-o", folder / "a.xml", "--threads", "1")
    code, out, _ = call(*arguments, "--option", hint)
    assert code == 0 and f"--option {hint}, which the file does not keep: give it again" in out
    code, out, _ = call(*arguments, "--force")
    assert code == 0 and "keep" not in out


def test_compile_refuses_names_that_the_model_has_not(call: Call, folder: Path) -> None:
    for wrong, told in (("--input-shape", "unknown input 'nope'"), ("--size", "unknown open dimension 'nope'")):
        value = "nope:[1]" if wrong == "--input-shape" else "nope=1,2,3"
        code, _, err = call("compile", folder / "dense.onnx", "-o", folder / "a.ort", wrong, value)
        assert code == 2 and told in err and not (folder / "a.ort").exists()
