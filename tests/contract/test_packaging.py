"""What is shipped: wheel and source archive against the tree, and a device with nothing but the wheel."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.install
ROOT = Path(__file__).parents[2]
SOURCES = ("edgerun", "converters", "quantize", "targets")
PYTHONS = ("python3.10", "python3.11")  # Jetson's, and ours
DEVICE = {"edgerun", "numpy", "click", "onnxruntime"}
WORKSTATION = {
    "onnx", "onnx-ir", "onnx_ir", "onnxscript", "torch", "keras", "tensorflow", "tensorflow-cpu", "tf2onnx", "openvino",
    "pillow", "scikit-learn", "skl2onnx", "skops", "tensorrt-rtx", "xgboost", "xgboost-cpu", "lightgbm", "onnxmltools",
}  # fmt: skip
WEIGHT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def _call(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """What the command printed: stdout, or stderr when another exit code than 0 was expected."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd, timeout=600)
    if done.returncode != code:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, built from a copy: a build folder of earlier days would ship deleted files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*SOURCES, "tests"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    try:
        _call(sys.executable, "-m", "build", "--outdir", out, source, cwd=out)
    except RuntimeError as error:
        if "No matching distribution" not in str(error) and "Connection" not in str(error):
            raise
        pytest.skip(f"setuptools cannot be fetched here, so nothing is built: {str(error)[-300:]}")
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


def _tree() -> set[str]:
    """Every file of the package in the checkout, as site-packages shall have it."""
    found = set()
    for folder in SOURCES:
        base = "edgerun" if folder == "edgerun" else f"edgerun/{folder}"
        for path in (ROOT / folder).rglob("*"):  # does not enter the three links
            inside = path.relative_to(ROOT / folder)
            if path.is_file() and path.suffix in {".py", ".toml", ".typed", ".html"} and not path.is_symlink():
                found.add(f"{base}/{inside.as_posix()}")
    return found


def test_every_package_is_listed() -> None:
    """A subpackage that pyproject.toml does not list is missing from the wheel without a word."""
    setuptools = importlib.import_module("tomllib").loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.removesuffix("/__init__.py").replace("/", ".") for name in _tree() if name.endswith("__init__.py")}
    assert set(setuptools["packages"]) == packages
    assert all((ROOT / folder).is_dir() for folder in setuptools["package-dir"].values())


def test_the_links_lead_to_the_real_folders() -> None:
    for name in SOURCES[1:]:
        link = ROOT / "edgerun" / name
        assert link.is_symlink() and link.readlink() == Path("..") / name


def test_the_wheel_is_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        told = {name: archive.read(name) for name in names if name.startswith("edgerun/")}
    assert set(told) == _tree()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"edgerun"}, "nothing else reaches site-packages"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for name, content in told.items():
        assert content == (ROOT / name).read_bytes(), name


def test_the_source_archive_is_complete(dist: Path) -> None:
    (found,) = dist.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        assert not [member for member in archive.getmembers() if member.issym() or member.islnk()]
    sources = {name.removeprefix("edgerun/") if name.split("/")[1] in SOURCES[1:] else name for name in _tree()}
    assert sources | {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith("tests/")]


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
        pytest.skip(f"no environment of {request.param} can be made here: {str(error)[-300:]}")
    return folder / "env" / "bin"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with `dense.onnx` (y = x·WEIGHT) and feeds `x.npz`."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "dense.onnx").write_bytes(proto.SerializeToString())
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32))
    return tmp_path


def test_a_device_has_what_it_needs_and_no_more(device: Path, tmp_path: Path) -> None:
    installed = json.loads(_call(device / "python", "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    names = {entry["name"].lower() for entry in installed}
    assert names >= DEVICE and not names & WORKSTATION


def test_a_device_runs_a_model_without_onnx(device: Path, place: Path) -> None:
    _call(device / "edgerun", "run", "dense.onnx", "--feeds", "x.npz", "-o", "y.npz", cwd=place)
    with np.load(place / "y.npz") as written, np.load(place / "x.npz") as feeds:
        np.testing.assert_allclose(written["y"], feeds["x"] @ WEIGHT, rtol=1e-5, atol=1e-6)


def test_a_device_measures_without_onnx(device: Path, place: Path) -> None:
    with np.load(place / "x.npz") as feeds:
        np.savez(place / "labelled.npz", x=feeds["x"], labels=(feeds["x"] @ WEIGHT).argmax(axis=1))
    told = json.loads(_call(device / "edgerun", "eval", "dense.onnx", "--data", "labelled.npz", "--json", cwd=place))
    assert (told["hits"], told["samples"]) == (3, 3)
    pair = ("dense.onnx", "dense.onnx", "--data", "x.npz", "--json")
    told = json.loads(_call(device / "edgerun", "compare", *pair, cwd=place))
    assert told["outputs"][0]["max_abs_error"] == 0
    told = json.loads(_call(device / "edgerun", "bench", *pair, "--rounds", "27", "--seconds", "2", cwd=place))
    assert [timing["runs"] > 0 for timing in told["timings"]] == [True, True]


def test_a_device_tells_what_it_has(device: Path, tmp_path: Path) -> None:
    targets = {t["name"]: t for t in json.loads(_call(device / "edgerun", "targets", "--json", cwd=tmp_path))}
    assert targets["onnxruntime"]["reason"] is None and targets["onnxruntime"]["opset"] >= 20
    assert "pip install 'edgerun[openvino]'" in targets["openvino"]["reason"]
    assert "pip install 'edgerun[compress]'" in targets["reference"]["reason"]
    assert "pip install 'edgerun[tensorrt]'" in targets["tensorrt"]["reason"]


def test_a_device_has_every_command(device: Path, tmp_path: Path) -> None:
    top = _call(device / "edgerun", "--help", cwd=tmp_path)
    for path in (ROOT / "edgerun/cli").glob("[a-z]*.py"):
        command = path.stem.replace("_", "-")
        assert f"\n  {command} " in top
        assert "Usage" in _call(device / "edgerun", command, "--help", cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("inspect dense.onnx", "compress"),
        ("check dense.onnx", "compress"),
        ("convert dense.onnx -o out.onnx", "compress"),
        ("compress dense.onnx -o out.onnx --calibration x.npz", "compress"),
        ("run dense.onnx --target openvino --feeds x.npz -o out.npz", "openvino"),
    ],
)
def test_work_for_the_workstation_is_not_supported_there(device: Path, place: Path, words: str, extra: str) -> None:
    told = _call(device / "edgerun", *words.split(), cwd=place, code=3)
    assert f"pip install 'edgerun[{extra}]'" in told and "Traceback" not in told
    assert not list(place.glob("out*"))
