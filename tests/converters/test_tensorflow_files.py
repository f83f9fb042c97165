"""SavedModel folders: what is not run, what is refused, damage, which signature."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported

RNG = np.random.default_rng(0)
Saved = Callable[..., Path]


def _convert(folder: Path, *inputs: str) -> Any:
    """The converter itself, in this process: what it refuses does not need a child each."""
    specs = [edgerun.TensorSpec.parse(text) for text in inputs]
    return registry.converter("tensorflow").convert(folder, inputs=specs, factory=None, opset=18)


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
def test_what_does_more_than_compute_is_not_run(tf: Any, saved: Saved, tmp_path: Path, serve: Any, named: str) -> None:
    folder = saved(tmp_path / "hostile", serve, place=str(tmp_path / "touched"))
    with pytest.raises(EdgerunError, match=f"(?s)asks for more than to compute.*{named}") as refused:
        _convert(folder)
    assert refused.value.exit_code == 2 and not (tmp_path / "touched").exists()


def test_a_hostile_model_through_the_door(tf: Any, saved: Saved, tmp_path: Path) -> None:
    folder = saved(tmp_path / "hostile", _write, place=str(tmp_path / "touched"))
    command = [sys.executable, "-m", "edgerun", "convert", str(folder), "-o", str(tmp_path / "out.onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "WriteFile" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out.onnx").exists()


def _edit(folder: Path, change: Callable[[Any], None]) -> None:
    saved = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    change(saved.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())


def test_only_the_checkpoint_is_read(tf: Any, saved: Saved, tmp_path: Path) -> None:
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
        folder = saved(tmp_path / change.__name__, lambda self, x: x * self.w)
        _edit(folder, change)
        with pytest.raises(EdgerunError, match=f"(?s)restoring the variables would.*{named}"):
            _convert(folder)
    assert not (tmp_path / "touched").exists()


def test_what_has_no_form_is_named(tf: Any, saved: Saved, tmp_path: Path) -> None:
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
        folder = saved(tmp_path / name, serve, **fields)
        with pytest.raises(Unsupported, match=f"(?s)cannot be converted.*{named}"):
            _convert(folder)
    text = saved(tmp_path / "text", lambda s, x: tf.strings.length(x), tf.TensorSpec([None], tf.string, name="s"))
    with pytest.raises(Unsupported, match="(?s)'s' is no tensor of numbers.*string"):
        _convert(text)


def test_an_input_of_unknown_rank(tf: Any, saved: Saved, tmp_path: Path) -> None:
    folder = saved(tmp_path / "open", lambda s, x: x * s.w, tf.TensorSpec(None, tf.float32, name="x"))
    with pytest.raises(EdgerunError, match="does not tell the shape of 'x'"):
        _convert(folder)
    found = _convert(folder, "x:float32[n,4]")
    assert [str(spec) for spec in found.model.outputs] == ["output_0:float32[n,4]"]


def test_which_signature(tf: Any, module: Callable[..., Any], tmp_path: Path) -> None:
    net = module(lambda self, x: {"y": x * self.w})
    tf.saved_model.save(net, str(tmp_path / "one"), signatures={"score": net.serve})
    assert [spec.name for spec in _convert(tmp_path / "one").model.outputs] == ["y"]
    tf.saved_model.save(net, str(tmp_path / "two"), signatures={"score": net.serve, "other": net.serve})
    with pytest.raises(EdgerunError, match="(?s)which signature.*got: other, score"):
        _convert(tmp_path / "two")
    chosen = edgerun.convert(tmp_path / "two", signature="score")
    assert chosen.history[-1].options["signature"] == "score" and [spec.name for spec in chosen.outputs] == ["y"]
    with pytest.raises(EdgerunError, match="(?s)unknown signature 'scores'.*did you mean 'score'"):
        edgerun.convert(tmp_path / "two", signature="scores")
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


def test_damaged_folders(tf: Any, saved: Saved, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return saved(tmp_path / name, lambda self, x: x * self.w)

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


def test_a_folder_is_no_file_for_the_other_converters(tf: Any, saved: Saved, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", lambda self, x: x * self.w)
    for name in ("pytorch", "keras", "onnx"):
        with pytest.raises(EdgerunError):
            edgerun.convert(folder, converter=name)
