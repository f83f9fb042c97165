"""TensorFlow in: Keras exports, functions and modules against TensorFlow in float64; a real SavedModel."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest

import edgerun
from bench import zoo_fetch
from edgerun import registry
from edgerun.errors import EdgerunError
from edgerun.parity import Parity
from tests.converters.conftest import ops

for package in ("tensorflow", "tf2onnx"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'edgerun[tensorflow]'", allow_module_level=True)

RELATIVE = 1e-5  # against TensorFlow in float64
RNG = np.random.default_rng(0)

# Keras keeps one backend for a whole process: what needs it on TensorFlow is made in a process of its own.
EXPORTS = """
import os, sys
os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
import keras, numpy as np
L = keras.layers
rng = np.random.default_rng(7)

def net(inputs, outputs):
    model = keras.Model(inputs, outputs)
    for v in model.weights:
        positive = "variance" in v.path
        v.assign(rng.uniform(0.5, 1.5, v.shape) if positive else rng.normal(0, 0.3, v.shape))
    return model

picture, steps = keras.Input((None, None, 3), name="image"), keras.Input((None, 5), name="steps")
a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(picture)
x = L.SeparableConv2D(8, 3, padding="same", activation="gelu")(L.ReLU(6.0)(L.BatchNormalization()(x)))
conv = net(picture, L.Dense(4)(L.GlobalAveragePooling2D()(L.Conv2D(8, 3, groups=2)(x))))
lstm = net(steps, L.Dense(3)(L.Bidirectional(L.LSTM(6))(steps)))
many = net({"a": a, "b": b}, {"total": L.Add()([a, b]), "dense": L.Dense(3, activation="tanh")(a)})
norm = keras.Sequential([keras.Input((4,), name="x"), L.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 2, 3, 4])])
"""
SAVE = """
for name, model in {"conv": conv, "lstm": lstm}.items():
    model.export(os.path.join(sys.argv[1], name), verbose=False)
"""
SUBCLASSED = """
import edgerun
from edgerun import registry
from edgerun.parity import Parity

class Two(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(4, activation="silu")
    def call(self, x, y):
        return {"sum": self.dense(x) + y}

for model, route in ((Two(), "tensorflow"), (many, "keras")):
    assert [n for n in registry.names("converter") if registry.converter(n).recognises(model)] == [route]
found = edgerun.convert(Two(), inputs=["x:float32[batch,6]", "y:float32[batch,4]"])
assert [str(s) for s in (*found.inputs, *found.outputs)] == [
    "x:float32[batch,6]", "y:float32[batch,4]", "sum:float32[batch,4]"], found.outputs
assert Parity.of(found).reference == "float64" and Parity.of(found).outputs[0].relative_error <= 1e-5
found = edgerun.convert(many, converter="tensorflow")
assert [str(s) for s in (*found.inputs, *found.outputs)] == [
    "a:float32[batch,5]", "b:float32[batch,5]", "dense:float32[batch,3]", "total:float32[batch,5]"], found.outputs
assert [s.name for s in edgerun.convert(norm, converter="tensorflow").inputs] == ["x"], "its constants are no inputs"
print("converted")
"""


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keras models as SavedModels, one folder each."""
    folder = tmp_path_factory.mktemp("exports")
    _python(EXPORTS + SAVE, str(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "nodes", "transposes"),
    [
        # The input's own layout, and the mean's: two transposes around all convolutions.
        ("conv", ["image:float32[batch,image_1,image_2,3]"], ["output_0:float32[batch,4]"], 19, 2),
        ("lstm", ["steps:float32[batch,steps_1,5]"], ["output_0:float32[batch,3]"], 22, 1),
    ],
)
def test_keras_exports(exports: Path, name: str, inputs: list[str], outputs: list[str], nodes: int,
                       transposes: int) -> None:  # fmt: skip
    model = edgerun.convert(exports / name)
    parity = Parity.of(model)
    assert [str(spec) for spec in model.inputs] == inputs and [str(spec) for spec in model.outputs] == outputs
    assert parity.reference == "float64" and all(output.relative_error <= RELATIVE for output in parity.outputs)
    assert len(set(parity.shapes)) == 3, "batches of 1, 3 and 2"
    made = ops(model)
    assert made.total() <= nodes and made["Transpose"] == transposes and not made["Loop"] and not made["Identity"]
    (step,) = model.history
    assert step.name == "converters/tensorflow" and step.options["source"] == name and len(step.before) == 64


def test_a_subclassed_keras_model() -> None:
    assert _python(EXPORTS + SUBCLASSED) == "converted\n"


def test_command_line_fixes_and_renames_dimensions(exports: Path, tmp_path: Path) -> None:
    output = tmp_path / "conv.onnx"
    command = [sys.executable, "-m", "edgerun", "convert", str(exports / "conv"), "-o", str(output)]
    done = subprocess.run([*command, "--input", "picture:float32[n,32,48,3]"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "picture:float32[n,32,48,3] -> output_0:float32[n,4]" in done.stdout
    with edgerun.load(output) as session:
        assert session.run({"picture": np.zeros((5, 32, 48, 3), np.float32)})["output_0"].shape == (5, 4)
    wrong = [edgerun.TensorSpec.parse("image:float32[batch,8,8,4]")]
    with pytest.raises(EdgerunError, match=r"(?s)has other inputs.*wanted: image:float32\[batch,image_1,image_2,3\]"):
        registry.converter("tensorflow").convert(exports / "conv", inputs=wrong, factory=None, opset=18)


def test_objects_of_this_process(tf: Any, module: Callable[..., Any]) -> None:
    w = tf.Variable(RNG.normal(size=(6, 4)).astype(np.float32))
    captured = tf.constant(RNG.normal(size=(4,)).astype(np.float32))

    def plain(x: Any, y: Any) -> Any:
        return tf.math.log1p(tf.nn.relu(x @ w)) + captured, tf.math.erfc(y) * tf.math.expm1(y)

    module = module(lambda self, x: {"y": x * self.w})
    specs = [tf.TensorSpec([None, 6], tf.float32, name="x"), tf.TensorSpec([None, 4], tf.float32, name="y")]
    inputs = ["x:float32[batch,6]", "y:float32[batch,4]"]
    for source, asked in ((tf.function(plain), inputs), (tf.function(plain).get_concrete_function(*specs), [])):
        model = edgerun.convert(source, inputs=asked)
        assert [str(spec) for spec in model.inputs] == inputs
        assert [str(s) for s in model.outputs] == ["output_0:float32[batch,4]", "output_1:float32[batch,4]"]
        assert all(output.relative_error <= RELATIVE for output in Parity.of(model).outputs)
    first, second = (edgerun.convert(module) for _ in range(2))
    assert [edgerun.convert(module, opset=o).ir.opset_imports[""] for o in (13, 21)] == [13, 21]
    assert first.digest() == second.digest() and [spec.name for spec in first.outputs] == ["y"]
    with pytest.raises(EdgerunError, match="does not tell its inputs"):
        edgerun.convert(tf.function(plain))
    with pytest.raises(EdgerunError, match="which function of the object"):
        edgerun.convert(tf.Module())


def test_branches_and_loops(tf: Any, module: Callable[..., Any]) -> None:
    def serve(self: Any, x: Any) -> Any:
        more, step = lambda i, _: i < tf.shape(x)[0], lambda i, value: (i + 1, value * 0.5 + self.w)  # noqa: E731
        _, x = tf.while_loop(more, step, (0, x))
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x * self.w, lambda: x - self.w)}

    model = edgerun.convert(module(serve))
    assert Parity.of(model).outputs[0].relative_error <= RELATIVE and ops(model)["Loop"] == ops(model)["If"] == 1


def test_an_input_that_is_the_output(tf: Any, module: Callable[..., Any]) -> None:
    model = edgerun.convert(module(lambda self, x: {"x": x, "y": x + self.w}))
    assert [spec.name for spec in model.outputs] == ["x_out", "y"]


@pytest.mark.zoo
def test_basic_pitch_is_what_its_authors_converted(tmp_path: Path) -> None:
    """A SavedModel of 2021 that `tf.saved_model.load` cannot open; the wheel has its authors' ONNX beside it."""
    archive = zoo_fetch.PITCH
    if not archive.path.exists():
        pytest.skip(f"{archive.file} is not in the cache: python -m bench.zoo")
    with zipfile.ZipFile(archive.path) as wheel:
        wheel.extractall(tmp_path)
    models = tmp_path / "basic_pitch" / "saved_models" / "icassp_2022"
    model = edgerun.convert(models / "nmp", output=tmp_path / "pitch.onnx")
    parity = Parity.of(model)
    assert [str(spec) for spec in model.inputs] == ["input_2:float32[batch,43844,1]"] and ops(model).total() <= 240
    assert parity.reference == "float64" and all(o.source_error and o.relative_error < 1e-4 for o in parity.outputs)
    feeds = {"input_2": RNG.uniform(-1, 1, (2, 43844, 1)).astype(np.float32)}
    theirs = onnxruntime.InferenceSession(str(models / "nmp.onnx"), providers=["CPUExecutionProvider"])
    with edgerun.load(tmp_path / "pitch.onnx") as session:
        ours = session.run(feeds)
    (door,) = theirs.get_inputs()
    found = dict(
        zip([o.name for o in theirs.get_outputs()], theirs.run(None, {door.name: feeds["input_2"]}), strict=True)
    )
    for name, index in {"note": 1, "onset": 2, "contour": 0}.items():
        (same,) = (array for key, array in found.items() if key in (name, f"StatefulPartitionedCall:{index}"))
        assert ours[name] == pytest.approx(np.asarray(same), abs=1e-3)
