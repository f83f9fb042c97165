"""A device: the wheel in a fresh environment with its own dependencies and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]
PYTHONS = ("python3.10", "python3.11")  # Jetson's, and ours
WEIGHT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def _call(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build folder of earlier days would ship deleted files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("edgerun", "converters", "quantize", "targets"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    try:
        _call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, source, cwd=out)
    except RuntimeError as error:
        pytest.skip(f"no wheel can be built here: {error}")
    return next(out.glob("*.whl"))


def _interpreter(name: str) -> Path:
    """The first of that name that runs: from PATH (where it may be a shim without a version), or from pyenv."""
    installed = Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}.*/bin/{name}")
    for found in (shutil.which(name), *sorted(installed)):
        if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
            return Path(found)
    pytest.skip(f"{name} is not on this machine")


@pytest.fixture(scope="module", params=PYTHONS)
def device(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds `pip install edgerun` and no more."""
    python = _interpreter(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    try:
        _call(python, "-m", "venv", folder / "env", cwd=folder)
        _call(folder / "env/bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    except RuntimeError as error:
        pytest.skip(f"no environment of {request.param} can be made here: {error}")
    return folder / "env" / "bin"


@pytest.mark.install
def test_a_device_runs_a_model_without_onnx(device: Path, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "dense.onnx").write_bytes(proto.SerializeToString())
    x = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)

    _call(device / "edgerun", "run", "dense.onnx", "--feeds", "x.npz", "-o", "y.npz", cwd=tmp_path)
    with np.load(tmp_path / "y.npz") as written:
        np.testing.assert_allclose(written["y"], x @ WEIGHT, rtol=1e-5, atol=1e-6)

    installed = json.loads(_call(device / "python", "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    names = {entry["name"].lower() for entry in installed}
    assert {"edgerun", "numpy", "click", "onnxruntime"} <= names
    assert not names & {"onnx", "onnx-ir", "onnx_ir", "torch", "openvino", "pillow", "scikit-learn"}


@pytest.mark.install
def test_a_device_tells_what_it_has(device: Path, tmp_path: Path) -> None:
    targets = {t["name"]: t for t in json.loads(_call(device / "edgerun", "targets", "--json", cwd=tmp_path))}
    assert targets["onnxruntime"]["reason"] is None and targets["onnxruntime"]["opset"] >= 20
    assert "pip install 'edgerun[openvino]'" in targets["openvino"]["reason"]
    assert "pip install 'edgerun[compress]'" in targets["reference"]["reason"]
    assert "targets" in _call(device / "edgerun", "--help", cwd=tmp_path)
