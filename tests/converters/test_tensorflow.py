"""TensorFlow in: signatures against TensorFlow itself, SavedModel folders, what is not run, refusals."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest

import edgerun
from bench import zoo_fetch
from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.parity import Parity

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


@pytest.fixture(scope="module")
def tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return importlib.import_module("tensorflow")


def _module(tf: Any, serve: Callable[..., Any], *signature: Any, **fields: Any) -> Any:
    """A tf.Module of a variable `w` [4] and the given fields; `serve` is its tf.function with that signature."""

    class Net(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.w = tf.Variable([0.5, -1.0, 2.0, 3.0])
            for name, value in fields.items():
                setattr(self, name, value)  # through tf.Module, which tracks what is to be saved

            wanted = signature or (tf.TensorSpec([None, 4], tf.float32, name="x"),)
            self.serve = tf.function(lambda *values: serve(self, *values), input_signature=wanted, autograph=False)

    return Net()


def _saved(tf: Any, folder: Path, serve: Callable[..., Any], *signature: Any, **fields: Any) -> Path:
    net = _module(tf, serve, *signature, **fields)
    tf.saved_model.save(net, str(folder), signatures=net.serve)
    return folder


def _convert(folder: Path, *inputs: str) -> Any:
    """The converter itself, in this process: what it refuses does not need a child each."""
    specs = [edgerun.TensorSpec.parse(text) for text in inputs]
    return registry.converter("tensorflow").convert(folder, inputs=specs, factory=None, opset=18)


def _ops(model: edgerun.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


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
    ops = _ops(model)
    assert ops.total() <= nodes and ops["Transpose"] == transposes and not ops["Loop"] and not ops["Identity"]
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
    with pytest.raises(EdgerunError, match=r"(?s)has other inputs.*wanted: image:float32\[batch,image_1,image_2,3\]"):
        _convert(exports / "conv", "image:float32[batch,8,8,4]")


def test_objects_of_this_process(tf: Any) -> None:
    w = tf.Variable(RNG.normal(size=(6, 4)).astype(np.float32))
    captured = tf.constant(RNG.normal(size=(4,)).astype(np.float32))

    def plain(x: Any, y: Any) -> Any:
        return tf.math.log1p(tf.nn.relu(x @ w)) + captured, tf.math.erfc(y) * tf.math.expm1(y)

    module = _module(tf, lambda self, x: {"y": x * self.w})
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


def test_branches_and_loops(tf: Any) -> None:
    def serve(self: Any, x: Any) -> Any:
        more, step = lambda i, _: i < tf.shape(x)[0], lambda i, value: (i + 1, value * 0.5 + self.w)  # noqa: E731
        _, x = tf.while_loop(more, step, (0, x))
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x * self.w, lambda: x - self.w)}

    model = edgerun.convert(_module(tf, serve))
    assert Parity.of(model).outputs[0].relative_error <= RELATIVE and _ops(model)["Loop"] == _ops(model)["If"] == 1


def test_an_input_that_is_the_output(tf: Any) -> None:
    model = edgerun.convert(_module(tf, lambda self, x: {"x": x, "y": x + self.w}))
    assert [spec.name for spec in model.outputs] == ["x_out", "y"]


def _read(self: Any, x: Any) -> Any:
    io, strings = importlib.import_module("tensorflow").io, importlib.import_module("tensorflow").strings
    return x * self.w + importlib.import_module("tensorflow").cast(strings.length(io.read_file("secret")), "float32")


def _write(self: Any, x: Any) -> Any:
    importlib.import_module("tensorflow").io.write_file(self.place, "written")
    return x * self.w


def _python_function(self: Any, x: Any) -> Any:
    tf = importlib.import_module("tensorflow")
    return tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), [None, 4]) * self.w


def _print(self: Any, x: Any) -> Any:
    importlib.import_module("tensorflow").print("x", output_stream=f"file://{self.place}")
    return x * self.w


@pytest.mark.parametrize(
    ("serve", "named"),
    [(_read, "ReadFile: uses files"), (_write, "WriteFile: uses files"), (_python_function, "PyFunc: runs Python"),
     (_print, "PrintV2: uses files")],
)  # fmt: skip
def test_what_does_more_than_compute_is_not_run(tf: Any, tmp_path: Path, serve: Any, named: str) -> None:
    folder = _saved(tf, tmp_path / "hostile", serve, place=str(tmp_path / "touched"))
    with pytest.raises(EdgerunError, match=f"(?s)asks for more than to compute.*{named}") as refused:
        _convert(folder)
    assert refused.value.exit_code == 2 and not (tmp_path / "touched").exists()


def test_a_hostile_model_through_the_door(tf: Any, tmp_path: Path) -> None:
    folder = _saved(tf, tmp_path / "hostile", _write, place=str(tmp_path / "touched"))
    command = [sys.executable, "-m", "edgerun", "convert", str(folder), "-o", str(tmp_path / "out.onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "WriteFile" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out.onnx").exists()


def _edit(folder: Path, change: Callable[[Any], None]) -> None:
    saved = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    change(saved.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())


def test_only_the_checkpoint_is_read(tf: Any, tmp_path: Path) -> None:
    """The operator that restores variables is part of the file, too."""

    def write(meta: Any) -> None:
        (function,) = (f for f in meta.graph_def.library.function if "traced_restore" in f.signature.name)
        text = function.node_def.add(name="text", op="Const")
        text.attr["dtype"].type = 7
        text.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(str(tmp_path / "touched")))
        function.node_def.add(name="evil", op="WriteFile", input=["text:output:0", "text:output:0"])

    def elsewhere(meta: Any) -> None:
        (function,) = (f for f in meta.graph_def.library.function if "traced_restore" in f.signature.name)
        (restore,) = (node for node in function.node_def if node.op == "RestoreV2")
        text = function.node_def.add(name="text", op="Const")
        text.attr["dtype"].type = 7
        text.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/elsewhere"))
        restore.input[0] = "text:output:0"

    def called_with_another(meta: Any) -> None:
        text = meta.graph_def.node.add(name="text", op="Const")
        text.attr["dtype"].type = 7
        text.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/elsewhere"))
        (call,) = (n for n in meta.graph_def.node if n.name == meta.saver_def.restore_op_name)
        call.input[0] = "text"

    for change, named in (
        (write, "WriteFile"), (elsewhere, "another file"), (called_with_another, "another file"),
    ):  # fmt: skip
        folder = _saved(tf, tmp_path / change.__name__, lambda self, x: x * self.w)
        _edit(folder, change)
        with pytest.raises(EdgerunError, match=f"(?s)restoring the variables would.*{named}"):
            _convert(folder)
    assert not (tmp_path / "touched").exists()


def test_what_has_no_form_is_named(tf: Any, tmp_path: Path) -> None:
    keys = tf.lookup.KeyValueTensorInitializer([1, 2], [3.0, 4.0])
    cases: dict[str, tuple[Callable[..., Any], str, dict[str, Any]]] = {
        "table": (lambda s, x: s.table.lookup(tf.cast(x, tf.int32)), "LookupTableFindV2: works on text or tables",
                  {"table": tf.lookup.StaticHashTable(keys, 0.0)}),
        "state": (lambda s, x: x + s.state.assign_add(1.0), "AssignAddVariableOp: changes a variable",
                  {"state": tf.Variable(0.0)}),
        "random": (lambda s, x: x + tf.random.normal(tf.shape(x)), "RandomStandardNormal: draws random", {}),
        "gamma": (lambda s, x: tf.math.lgamma(x * s.w), "Lgamma: has no ONNX form", {}),
    }  # fmt: skip
    for name, (serve, named, fields) in cases.items():
        folder = _saved(tf, tmp_path / name, serve, **fields)
        with pytest.raises(Unsupported, match=f"(?s)cannot be converted.*{named}"):
            _convert(folder)
    text = _saved(tf, tmp_path / "text", lambda s, x: tf.strings.length(x), tf.TensorSpec([None], tf.string, name="s"))
    with pytest.raises(Unsupported, match="(?s)'s' is no tensor of numbers.*string"):
        _convert(text)


def test_an_input_of_unknown_rank(tf: Any, tmp_path: Path) -> None:
    folder = _saved(tf, tmp_path / "open", lambda s, x: x * s.w, tf.TensorSpec(None, tf.float32, name="x"))
    with pytest.raises(EdgerunError, match="does not tell the shape of 'x'"):
        _convert(folder)
    found = _convert(folder, "x:float32[n,4]")
    assert [str(spec) for spec in found.model.outputs] == ["output_0:float32[n,4]"]


def test_which_signature(tf: Any, tmp_path: Path) -> None:
    net = _module(tf, lambda self, x: {"y": x * self.w})
    tf.saved_model.save(net, str(tmp_path / "one"), signatures={"score": net.serve})
    assert [spec.name for spec in _convert(tmp_path / "one").model.outputs] == ["y"]
    tf.saved_model.save(net, str(tmp_path / "two"), signatures={"score": net.serve, "other": net.serve})
    with pytest.raises(EdgerunError, match="(?s)which signature.*got: other, score"):
        _convert(tmp_path / "two")
    loaded = tf.saved_model.load(str(tmp_path / "two"))
    assert [spec.name for spec in edgerun.convert(loaded.signatures["score"]).outputs] == ["y"]
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    with pytest.raises(EdgerunError, match="no signature to convert"):
        _convert(tmp_path / "none")


def test_a_graph_of_tensorflow_1(tf: Any, tmp_path: Path) -> None:
    """Variables under their own names, a saver in the graph, no functions."""
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        x = v1.placeholder(tf.float32, [None, 6], name="x")
        w = v1.get_variable("w", initializer=tf.ones([6, 4]), use_resource=False)
        y = tf.nn.softmax(x @ w)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "v1"), {"x": x}, {"y": y})
    found = _convert(tmp_path / "v1")
    feeds = {"x": RNG.normal(size=(3, 6)).astype(np.float32)}
    assert found.run(feeds)["y"] == pytest.approx(np.full((3, 4), 0.25), abs=1e-6)
    assert [str(spec) for spec in found.model.inputs] == ["x:float32[batch,6]"]


def test_damaged_folders(tf: Any, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return _saved(tf, tmp_path / name, lambda self, x: x * self.w)

    whole = (fresh("whole") / "saved_model.pb").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "whole" / "saved_model.pb").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(EdgerunError):
            _convert(tmp_path / "whole")
    folder = fresh("index")
    (folder / "variables" / "variables.index").unlink()
    with pytest.raises(EdgerunError, match="the variables are missing"):
        _convert(folder)
    folder = fresh("data")
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(EdgerunError, match="TensorFlow cannot load it"):
        _convert(folder)
    (folder / "variables" / "variables.data-00000-of-00001").unlink()
    (folder / "variables" / "variables.data-00000-of-00001").symlink_to("/etc/hostname")
    with pytest.raises(EdgerunError, match="a link leaves the folder"):
        edgerun.convert(folder)


def test_a_folder_is_no_file_for_the_other_converters(tf: Any, tmp_path: Path) -> None:
    folder = _saved(tf, tmp_path / "model", lambda self, x: x * self.w)
    for name in ("pytorch", "keras", "onnx"):
        with pytest.raises(EdgerunError):
            edgerun.convert(folder, converter=name)


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
    assert [str(spec) for spec in model.inputs] == ["input_2:float32[batch,43844,1]"] and _ops(model).total() <= 240
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
