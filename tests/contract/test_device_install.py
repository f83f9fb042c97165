"""The device's wheel, `edgerun-device`: its size, and what it does with numpy, click and ONNX Runtime alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgerun
from bench import device_wheel
from edgerun.errors import EdgerunError

pytestmark = pytest.mark.install
ROOT = Path(__file__).parents[2]
PYTHONS = ("python3.10", "python3.11")  # Jetson's, and ours
DEVICE = {"edgerun-device", "numpy", "click", "onnxruntime"}
WORKSTATION = {
    "edgerun", "onnx", "onnx-ir", "onnx_ir", "onnxscript", "torch", "keras", "tensorflow", "tensorflow-cpu", "tf2onnx",
    "openvino", "pillow", "scikit-learn", "skl2onnx", "skops", "tensorrt-rtx", "xgboost", "xgboost-cpu", "lightgbm",
    "onnxmltools",
}  # fmt: skip
NOT_THERE = {"check", "compile", "compress", "convert", "inspect", "why-slow", "why-wrong"}
MOST = 2_000_000  # bytes on a device of all that the wheel brings, and of the bytecode that pip compiles of it
COLOURS = ["blue", "green", "red"]
WEIGHT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def _call(*command: str | Path, cwd: Path, code: int = 0, env: dict[str, str] | None = None) -> str:
    """What the command printed: stdout, or stderr when another exit code than 0 was expected."""
    words = [str(word) for word in command]
    env = env or {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # of a checkout
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=600, env=env)
    if done.returncode != code:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return device_wheel.build(tmp_path_factory.mktemp("dist"))
    except EdgerunError as error:
        if "No matching distribution" not in str(error) and "Connection" not in str(error):
            raise
        pytest.skip(f"setuptools cannot be fetched here, so nothing is built: {str(error)[-300:]}")


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """How to start Python with that wheel and these packages in reach, and nothing else of this environment."""
    folder = tmp_path_factory.mktemp("bare")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    _call(*pip, "--target", folder / "edgerun", wheel, cwd=folder)
    (folder / "needs").mkdir()
    for needed in ("numpy", "click", "onnxruntime"):
        found = importlib.metadata.distribution(needed)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            (folder / "needs" / top).symlink_to(str(found.locate_file(top)))
    places = [str(folder / "edgerun"), str(folder / "needs")]
    code = f"import sys; sys.path[:0] = {places}; from edgerun.cli import main; sys.argv[0] = 'edgerun'; main()"
    return [sys.executable, "-I", "-S", "-c", code]


def test_what_it_adds_to_a_device_is_small(wheel: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path)
    _call(*pip, wheel, cwd=tmp_path)
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    own, total = sum(size for path, size in sizes.items() if path.suffix != ".pyc"), sum(sizes.values())
    blocks = 512 * sum(path.stat().st_blocks for path in sizes)
    print(f"edgerun-device: {own:,} bytes of files, {total:,} with bytecode, {blocks:,} in whole blocks")
    assert 400_000 < own < total < MOST and any(path.suffix == ".pyc" for path in sizes)


def test_its_files_are_the_tree_s(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        told = {name: archive.read(name) for name in archive.namelist() if name.startswith("edgerun/")}
        (meta,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    assert all((ROOT / name).read_bytes() == content for name, content in told.items())
    assert {"edgerun/py.typed", "edgerun/targets/devices/raspberry-pi-5.toml"} <= set(told)
    assert not [name for name in told if name.startswith(("edgerun/converters", "edgerun/quantize", "edgerun/report"))]
    whole = importlib.import_module("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = meta.splitlines()
    assert f"Version: {whole['version']}" in lines and f"Requires-Python: {whole['requires-python']}" in lines
    needs = {line.removeprefix("Requires-Dist: ").replace(" ", "") for line in lines if "Requires-Dist" in line}
    assert {need.replace(" ", "").replace("'", '"') for need in whole["dependencies"]} <= {
        n.replace("'", '"') for n in needs
    }
    for extra in ("openvino", "tensorrt"):
        assert {f"{need.split(';')[0]}" for need in whole["optional-dependencies"][extra]} <= {
            n.split(";")[0] for n in needs
        }


def test_a_model_runs_with_numpy_click_and_onnxruntime_alone(bare: list[str | Path], place: Path) -> None:
    _call(*bare, "run", "dense.onnx", "--feeds", "x.npz", "-o", "y.npz", cwd=place)
    with np.load(place / "y.npz") as written, np.load(place / "x.npz") as feeds:
        np.testing.assert_allclose(written["y"], feeds["x"] @ WEIGHT, rtol=1e-5, atol=1e-6)


def test_checked_says_that_it_is_not_there(bare: list[str | Path], place: Path) -> None:
    told = _call(
        *bare, "run", "dense.onnx", "--feeds", "x.npz", "-o", "y.npz", "--checked", "--force", cwd=place, code=3
    )
    assert "comparing a model with the reference is not in edgerun-device" in told and len(told.splitlines()) == 1
    assert not (place / "y.npz").exists()


def test_help_has_what_is_there(bare: list[str | Path], tmp_path: Path) -> None:
    top = _call(*bare, "--help", cwd=tmp_path)
    commands = {path.stem.replace("_", "-") for path in (ROOT / "edgerun/cli").glob("[a-z]*.py")}
    assert {name for name in commands if f"\n  {name} " in top} == commands - NOT_THERE
    for name in sorted(commands - NOT_THERE):
        assert "Usage" in _call(*bare, name, "--help", cwd=tmp_path)


@pytest.mark.parametrize("name", sorted(NOT_THERE))
def test_what_is_not_there_says_where_it_is(bare: list[str | Path], place: Path, name: str) -> None:
    told = _call(*bare, name, "dense.onnx", "-o", "out.onnx", cwd=place, code=3)
    assert told.startswith(f"error: edgerun {name} is not in edgerun-device") and len(told.splitlines()) == 1
    assert "pip install 'edgerun[compress]'" in told and "pip uninstall edgerun-device" in told


def test_python_says_the_same(bare: list[str | Path], place: Path) -> None:
    code = str(bare[-1]).partition("; from")[0]
    asked = {"edgerun.compress": "edgerun.compress", "edgerun.Model": "edgerun.Model",
             "edgerun.load('dense.onnx', 'auto')": "choosing a target by what it computes"}  # fmt: skip
    for call, what in asked.items():
        told = f"import edgerun, edgerun.errors as e\ntry: {call}\nexcept e.Unsupported as error: print(error)"
        assert f"{what} is not in edgerun-device" in _call(*bare[:-1], f"{code}\n{told}", cwd=place)
    told = (
        "from edgerun.compat.inference_session import InferenceSession; import numpy as np; "
        "print(InferenceSession('dense.onnx').run(None, {'x': np.ones((1, 6), np.float32)})[0].shape)"
    )
    assert _call(*bare[:-1], f"{code}; {told}", cwd=place) == "(1, 4)\n"


def test_completion_offers_what_is_there(bare: list[str | Path], tmp_path: Path) -> None:
    """All public names but those that would only say where they are: a completer reads every name that it offers."""
    code = str(bare[-1]).partition("; from")[0]
    told = "import edgerun, rlcompleter; c = rlcompleter.Completer(vars()); print(*c.attr_matches('edgerun.'))"
    printed = _call(*bare[:-1], f"{code}; {told}", cwd=tmp_path)
    offered = {word.removeprefix("edgerun.").partition("(")[0] for word in printed.split()}
    absent = {name.replace("-", "_") for name in NOT_THERE} | {"Model"}
    assert {name for name in edgerun.__all__ if not name.startswith("_")} - offered == absent


def test_a_command_that_is_nowhere_is_misuse(bare: list[str | Path], tmp_path: Path) -> None:
    assert "No such command" in _call(*bare, "load", cwd=tmp_path, code=2)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_pictures_go_through_the_contracts_in_the_file(bare: list[str | Path], place: Path, target: str) -> None:
    """Where Pillow is, and the runtime: this environment's packages, and that wheel before them."""
    pytest.importorskip(target)
    assert "pip install pillow" in _call(*bare, "run", "colours.onnx", "--data", "colours", cwd=place, code=3)
    env = {**os.environ, "PYTHONPATH": str(bare[-1]).split("'")[1]}
    command = (sys.executable, "-c", "from edgerun.cli import main; main()")
    asked = ("colours.onnx", "--target", target, "--json")
    told = json.loads(_call(*command, "run", *asked, "--data", "colours/red/0.png", cwd=place, env=env))
    (answer,) = told.values()
    assert answer[0]["label"] == "red"
    told = json.loads(_call(*command, "eval", *asked, "--data", "colours", cwd=place, env=env))
    assert (told["hits"], told["samples"]) == (3, 3)
    (place / "processor.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    foreign = ("run", "colours.onnx", "--data", "colours", "--preprocessing", "processor.json")
    said = _call(*bare, *foreign, cwd=place, code=3)
    assert "what reads a preprocessing file of Transformers or timm is not in edgerun-device" in said


def test_a_metric_of_ones_own_counts_there(bare: list[str | Path], place: Path) -> None:
    x = np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32)
    np.savez(place / "near.npz", x=x, labels=x @ WEIGHT + np.arange(40)[:, None] / 20)
    (place / "own.py").write_text("def near(outputs, labels):\n    return abs(outputs['y'] - labels).max(1) < 0.96\n")
    asked = ("eval", "dense.onnx", "--data", "near.npz", "--metric", "own:near", "--json")
    told = json.loads(_call(*bare, *asked, cwd=place))
    assert (told["hits"], told["samples"], told["metric"]) == (20, 40, "own:near")


def _interpreter(name: str) -> Path:
    """The first of that name that runs: from PATH (where it may be a shim without a version), or from pyenv."""
    installed = Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}.*/bin/{name}")
    for found in (shutil.which(name), *sorted(installed)):
        if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
            return Path(found)
    pytest.skip(f"{name} is not on this machine")


@pytest.fixture(scope="module", params=PYTHONS)
def device(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds `pip install edgerun-device` and no more."""
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
    """A folder with `dense.onnx` (y = x·WEIGHT), feeds `x.npz`, and `colours.onnx`, which tells pictures by their mean
    colour (its contracts inside), with a picture of each."""
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
    (tmp_path / "colours.onnx").write_bytes(_colours())
    for index, name in enumerate(COLOURS):
        (tmp_path / "colours" / name).mkdir(parents=True)
        picture = np.full((9, 11, 3), 20, np.uint8)
        picture[..., 2 - index] = 200
        Image.fromarray(picture).save(tmp_path / "colours" / name / "0.png")
    return tmp_path


def _colours() -> bytes:
    """[1, 3, 8, 8], red first -> the means [1, 3], blue first."""
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["m"]), helper.make_node("Flatten", ["m"], ["rgb"]),
             helper.make_node("Gather", ["rgb", "turned"], ["y"], axis=1)]  # fmt: skip
    door = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])]  # fmt: skip
    turned = numpy_helper.from_array(np.array([2, 1, 0]), "turned")
    graph = helper.make_graph(nodes, "colours", door[:1], door[1:], [turned])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contracts = {"preprocessing": {"size": [8, 8]}, "postprocessing": {"kind": "classes", "labels": COLOURS}}
    helper.set_model_props(proto, {f"edgerun.{key}": json.dumps(value) for key, value in contracts.items()})
    return bytes(proto.SerializeToString())


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
    assert "pip install 'edgerun-device[openvino]'" in targets["openvino"]["reason"]
    assert targets.keys() == {"onnxruntime", "openvino", "tensorrt"}
    assert "pip install 'edgerun-device[tensorrt]'" in targets["tensorrt"]["reason"]


def test_a_device_reads_devices_on_any_python(device: Path, tmp_path: Path) -> None:
    """Python 3.10 has no reader of TOML."""
    told = json.loads(_call(device / "edgerun", "devices", "--json", cwd=tmp_path))
    assert {one["name"] for one in told} == {path.stem for path in (ROOT / "targets/devices").glob("*.toml")}
    _call(device / "edgerun", "probe", "-o", "here.toml", cwd=tmp_path)
    assert _call(device / "edgerun", "devices", "here.toml", cwd=tmp_path).startswith("here: ")


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("run dense.onnx --target openvino --feeds x.npz -o out.npz", "openvino"),
    ],
)
def test_what_needs_more_than_is_installed_names_it(device: Path, place: Path, words: str, extra: str) -> None:
    told = _call(device / "edgerun", *words.split(), cwd=place, code=3)
    assert f"pip install 'edgerun-device[{extra}]'" in told and "Traceback" not in told
    assert not list(place.glob("out*"))
