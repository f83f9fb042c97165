"""What every registered converter must do; a new file in converters/ is tested the moment it exists."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import guard, guard_source, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.parity import Parity
from edgerun.passes import Converter

NAMES = registry.names("converter")
SUFFIXES = (
    ".onnx", ".pt", ".pth", ".pt2", ".ts", ".torchscript", ".keras", ".h5", ".hdf5", ".tflite", ".pb", ".skops",
    ".joblib", ".pkl", ".pickle", ".npz", ".txt", "",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
WEIGHT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def _onnx(folder: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    path = folder / "dense.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _pytorch(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    dense = torch.nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(WEIGHT.T))
    path = folder / "dense.pt"
    torch.jit.trace(dense, torch.zeros(2, 6)).save(str(path))
    return path


def _keras(folder: Path) -> Path:
    keras = pytest.importorskip("keras")
    net = keras.Sequential([keras.Input((6,), name="x"), keras.layers.Dense(4, use_bias=False)])
    net.layers[0].set_weights([WEIGHT])
    path = folder / "dense.keras"
    net.save(path)
    return path


def _sklearn(folder: Path) -> Path:
    linear = pytest.importorskip("sklearn.linear_model")
    skops = pytest.importorskip("skops.io")
    x = np.random.default_rng(1).normal(size=(50, 6))
    path = folder / "dense.skops"
    skops.dump(linear.LinearRegression(fit_intercept=False).fit(x, x @ WEIGHT), path)
    return path


def _tensorflow(folder: Path) -> Path:
    """Made in a process of its own: importing TensorFlow takes seconds and hundreds of MB, and stays."""
    code = """
import sys
import numpy as np, tensorflow as tf
net = tf.Module()
net.w = tf.Variable(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
net.f = tf.function(lambda x: {"y": x @ net.w}, input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")])
tf.saved_model.save(net, sys.argv[1], signatures=net.f)
"""
    subprocess.run([sys.executable, "-c", code, folder / "dense"], check=True, capture_output=True)
    return folder / "dense"


def _tflite(folder: Path) -> Path:
    """Made in a process of its own, as above."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow, which writes such files, is not installed")
    code = """
import sys
import numpy as np, tensorflow as tf
weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
net = tf.function(lambda x: x @ weight, input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")])
made = tf.lite.TFLiteConverter.from_concrete_functions([net.get_concrete_function()], tf.Module())
open(sys.argv[1], "wb").write(made.convert())
"""
    subprocess.run([sys.executable, "-c", code, folder / "dense.tflite"], check=True, capture_output=True)
    return folder / "dense.tflite"


# One file or folder for each converter, all of them y = x·WEIGHT; a converter without one fails below.
SAMPLES: dict[str, Callable[[Path], Path]] = {
    "onnx": _onnx,
    "pytorch": _pytorch,
    "keras": _keras,
    "tensorflow": _tensorflow,
    "sklearn": _sklearn,
    "tflite": _tflite,
}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def converter(name: str) -> Converter:
    return registry.converter(name)


@pytest.fixture
def sample(name: str, converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if reason := registry.missing(converter.requires, converter.extra):
        pytest.skip(f"{name}: {reason}")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert name in SAMPLES, f"add a file that {name} reads to SAMPLES"
    return SAMPLES[name](tmp_path)


def test_protocol(name: str, converter: Converter) -> None:
    assert re.fullmatch("[a-z][a-z0-9_]*", name)
    assert converter.summary and "\n" not in converter.summary
    assert converter.requires and all(isinstance(module, str) for module in converter.requires)
    assert 13 <= converter.newest_opset <= guard.NEWEST_OPSET
    for function in ("recognises", "convert"):
        ours, theirs = getattr(converter, function), getattr(Converter, function)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)[1:], function
        assert ours.__doc__, function


def test_the_extra_brings_what_is_required(converter: Converter) -> None:
    tomllib = importlib.import_module("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert converter.extra in project["optional-dependencies"]


def test_naming_and_recognising_load_no_framework() -> None:
    """Every converter is asked about every kind of file and about foreign objects; nothing heavy is imported."""
    code = f"""
import sys
from edgerun import guard, registry
for name in registry.names("converter"):
    for source in [*("model" + suffix for suffix in {SUFFIXES!r}), None, 3, b"", object()]:
        assert registry.converter(name).recognises(source) in (True, False)
print(" ".join(sorted({{module.partition(".")[0] for module in sys.modules}})))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {
        "torch",
        "keras",
        "tensorflow",
        "ai_edge_litert",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "openvino",
        "h5py",
        "sklearn",
        "joblib",
    }


def test_a_kind_of_file_has_one_converter() -> None:
    for suffix in SUFFIXES:
        claims = [n for n in NAMES if registry.converter(n).recognises(f"model{suffix}")]
        assert len(claims) <= 1, (suffix, claims)


class _Watched:
    """Unpickles, compares and prints as a program would: each of these touches `touched`."""

    touched: list[str] = []

    def __reduce__(self) -> Any:
        return (self.touched.append, ("unpickled",))

    def __str__(self) -> str:
        self.touched.append("printed")
        return "model.onnx"

    def __fspath__(self) -> str:
        self.touched.append("opened")
        return "model.onnx"

    def __call__(self) -> None:
        self.touched.append("called")


def test_recognising_runs_nothing_of_the_source(converter: Converter, tmp_path: Path) -> None:
    _Watched.touched.clear()
    file = io.BytesIO()
    pickle.dump(_Watched(), file)
    assert not converter.recognises(_Watched())
    for suffix in SUFFIXES:
        path = tmp_path / f"model{suffix}"
        path.write_bytes(file.getvalue())
        assert isinstance(converter.recognises(path), bool)
        assert converter.recognises(str(path)) == converter.recognises(tmp_path / f"absent{suffix}")
    assert not _Watched.touched


def test_a_missing_framework_is_a_visible_line(name: str, converter: Converter, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    path = tmp_path / "model"
    path.write_bytes(b"x")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find(name) if name.startswith("edgerun") else None)
    with pytest.raises(Unsupported) as refused:
        edgerun.convert(path, converter=name, output=tmp_path / "out.onnx")
    assert f"pip install 'edgerun[{converter.extra}]'" in str(refused.value)
    assert converter.requires[0] in str(refused.value) and not (tmp_path / "out.onnx").exists()


def test_converts_and_says_so(name: str, sample: Path, tmp_path: Path) -> None:
    inputs = ["x:float32[batch,6]"]
    first = edgerun.convert(sample, converter=name, inputs=inputs, output=tmp_path / "first.onnx")
    edgerun.convert(sample, converter=name, inputs=inputs, output=tmp_path / "second.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    step = first.history[-1]
    assert len(first.history) == 1 and step.name == f"converters/{name}" and step.version == edgerun.__version__
    assert len(step.before) == len(step.after) == 64 and step.after == first.digest()
    parity = Parity.of(first)
    assert parity.passed and parity.outputs[0].relative_error <= 1e-5 and len(parity.shapes) == 3
    assert [str(spec) for spec in first.inputs] == inputs
    x = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    with edgerun.load(tmp_path / "first.onnx") as session:
        (y,) = session.run({"x": x}).values()
    np.testing.assert_allclose(y, x @ WEIGHT, atol=1e-5, rtol=1e-5)


def test_damage_is_one_clear_error(sample: Path, converter: Converter, tmp_path: Path) -> None:
    """Nonsense and half a file, under the name that the converter trusts."""
    file = sample / guard_source.SAVED_MODEL if sample.is_dir() else sample
    whole = file.read_bytes()
    for content in (b"nonsense" * 100, whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(EdgerunError) as refused:
            converter.convert(sample, inputs=[edgerun.TensorSpec("x", "float32", ("batch", 6))], factory=None, opset=17)
        assert refused.value.what and refused.value.exit_code in (2, 3)
