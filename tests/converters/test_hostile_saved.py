"""Hostile SavedModel folders, made here: one clear error each, with nothing run and nothing written.

What they ask for would make the file `canary`, bring a file of this machine into the model, or not end.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Not imported here: Keras, which comes along, keeps the backend that it met first for a whole process.
for package in ("tensorflow", "tf2onnx"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'edgerun[tensorflow]'", allow_module_level=True)

import edgerun  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402
from edgerun.sandbox import Limits  # noqa: E402
from tests.converters.hostile import Make, changed, flipped, half, one_clear_error  # noqa: E402

GRAPH, INDEX, DATA = "saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"
HUGE = 1 << 20


@functools.cache
def _tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return importlib.import_module("tensorflow")


def serving(serve: Callable[[Any, Any], Any]) -> Make:
    """A module whose signature computes serve(x float32 [n, 4], its variable w [4])."""

    def make(path: Path) -> None:
        tf, signature = _tf(), [_tf().TensorSpec([None, 4], _tf().float32, name="x")]
        net = tf.Module()
        net.w = tf.Variable([0.5, -1.0, 2.0, 3.0])
        net.serve = tf.function(lambda x: serve(x, net.w), input_signature=signature, autograph=False)
        tf.saved_model.save(net, str(path), signatures=net.serve)

    return make


@functools.cache
def _good() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edgerun-good-"))
    serving(lambda x, w: x * w)(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module", autouse=True)
def _none_left() -> Any:
    yield
    shutil.rmtree(_good().parent)


def damaged(part: str, change: Callable[[Path], object]) -> Make:
    """A good folder in which `change` has been at one file."""

    def make(path: Path) -> None:
        shutil.copytree(_good(), path)
        change(path / part)

    return make


def bytes_of(part: str, change: Callable[[bytearray], bytearray]) -> Make:
    return damaged(part, changed(lambda path: None, change))


def edited(change: Callable[[Any], object]) -> Make:
    """A good folder with another graph: `change` gets its MetaGraphDef."""

    def write(path: Path) -> None:
        saved = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
        saved.ParseFromString(path.read_bytes())
        change(saved.meta_graphs[0])
        path.write_bytes(saved.SerializeToString())

    return damaged(GRAPH, write)


def signature(meta: Any) -> Any:
    return meta.signature_def["serving_default"]


def constant(*dims: int) -> Make:
    """The signature gives a constant of these sizes, one number in the file."""

    def change(meta: Any) -> None:
        node = meta.graph_def.node.add(name="big", op="Const")
        node.attr["dtype"].type = node.attr["value"].tensor.dtype = 1
        for size in dims:
            node.attr["value"].tensor.tensor_shape.dim.add(size=size)
        node.attr["value"].tensor.float_val.append(1.0)
        signature(meta).outputs["output_0"].name = "big:0"

    return edited(change)


def calls(count: int, depth: int) -> Make:
    """Functions F0, F1 … of x, each of which calls the next one `count` times; the last one calls the first."""

    def change(meta: Any) -> None:
        for number in range(depth):
            function = meta.graph_def.library.function.add()
            function.signature.name = f"F{number}"
            function.signature.input_arg.add(name="x", type=1)
            function.signature.output_arg.add(name="y", type=1)
            last = "x"
            for call in range(count):
                node = function.node_def.add(name=f"c{call}", op="PartitionedCall", input=[last])
                node.attr["Tin"].list.type.append(1)
                node.attr["Tout"].list.type.append(1)
                node.attr["f"].func.name = f"F{(number + 1) % depth}"
                last = f"c{call}:output:0"
            function.ret["y"] = last
        node = meta.graph_def.node.add(name="start", op="F0", input=[signature(meta).inputs["x"].name.split(":")[0]])
        signature(meta).outputs["output_0"].name = f"{node.name}:0"

    return edited(change)


def _stranger(meta: Any) -> None:
    meta.graph_def.node.add(name="evil", op="Steal")
    signature(meta).outputs["output_0"].name = "evil:0"


def _circle(meta: Any) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        meta.graph_def.node.add(name=name, op="Identity", input=[other]).attr["T"].type = 1
    signature(meta).outputs["output_0"].name = "a:0"


def _linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../../secret" if path.name != GRAPH else "../../secret")


def _hard(path: Path) -> None:
    path.unlink()
    os.link(path.parents[3] / "secret", path)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _noise(data: bytearray) -> bytearray:
    return bytearray(np.random.default_rng(0).integers(0, 256, len(data), np.uint8).tobytes())


def _raw(name: str, **given: Any) -> Callable[[Any, Any], Any]:
    """An operator that gives no number: x·w behind it."""

    def serve(x: Any, w: Any) -> Any:
        with _tf().control_dependencies([getattr(_tf().raw_ops, name)(**given)]):
            return x * w

    return serve


MAKERS: dict[str, Make] = {
    "numpy_function": serving(lambda x, w: x + _tf().reshape(_tf().numpy_function(abs, [x], _tf().float32), [1, 4])),
    "py_function": serving(lambda x, w: x + _tf().reshape(_tf().py_function(abs, [x], _tf().float32), [1, 4])),
    "reads": serving(lambda x, w: x + _tf().cast(_tf().strings.length(_tf().io.read_file("/etc/passwd")), "float32")),
    "writes": serving(_raw("WriteFile", filename="canary", contents="x")),
    "prints_into_a_file": serving(_raw("PrintV2", input="x", output_stream="file://canary")),
    "saves": serving(lambda x, w: _raw("SaveV2", prefix="canary", tensor_names=["w"], shape_and_slices=[""],
                                       tensors=[_tf().ones(4)])(x, w)),
    "restores_another_file": serving(lambda x, w: x * _tf().raw_ops.RestoreV2(
        prefix="../secret", tensor_names=["w"], shape_and_slices=[""], dtypes=[_tf().float32])[0]),
    "lists_files": serving(lambda x, w: x + _tf().cast(_tf().size(_tf().io.matching_files("/etc/*")), "float32")),
    "half_a_graph": bytes_of(GRAPH, half),
    "flipped_graph": bytes_of(GRAPH, flipped),
    "noise_for_a_graph": bytes_of(GRAPH, _noise),
    "empty_graph": bytes_of(GRAPH, lambda data: bytearray()),
    "text_for_a_graph": bytes_of(GRAPH, lambda data: bytearray(b"cos\nsystem\n(S'touch canary'\ntR.")),
    "half_an_index": bytes_of(INDEX, half),
    "flipped_index": bytes_of(INDEX, flipped),
    "noise_for_an_index": bytes_of(INDEX, _noise),
    "half_the_data": bytes_of(DATA, half),
    "no_data": bytes_of(DATA, lambda data: bytearray()),
    "flipped_data": bytes_of(DATA, lambda data: bytearray(byte ^ 0x5A for byte in data)),
    "no_index": damaged(INDEX, Path.unlink),
    "index_that_is_a_folder": damaged(INDEX, _folder),
    "data_linked_outside": damaged(DATA, _linked),
    "graph_linked_outside": damaged(GRAPH, _linked),
    "data_hard_linked_outside": damaged(DATA, _hard),
    "data_that_is_a_pipe": damaged(DATA, _pipe),
    "constant_of_terabytes": constant(HUGE, HUGE),
    "constant_of_exabytes": constant(1 << 40, 1 << 40),
    "constant_of_negative_sizes": constant(-5, 3),
    "fill_of_terabytes": serving(lambda x, w: x + _tf().reduce_max(_tf().fill([HUGE, HUGE], 1.0))),
    "tile_of_terabytes": serving(lambda x, w: x + _tf().reduce_max(_tf().tile([[1.0]], [HUGE, HUGE]))),
    "range_of_terabytes": serving(lambda x, w: x + _tf().reduce_max(_tf().range(0.0, 1e12))),
    "fill_of_what_only_running_tells": serving(lambda x, w: x + _tf().reduce_max(_tf().fill(_tf().cast(
        _tf().stack(2 * [HUGE + _tf().minimum(_tf().reduce_sum(_tf().abs(x)), 0.0)]), _tf().int32), 1.0))),
    "function_that_calls_itself": calls(1, 1),
    "functions_that_call_each_other": calls(1, 2),
    "functions_that_double_forty_times": calls(2, 40),
    "operator_of_a_stranger": edited(_stranger),
    "circle_of_two": edited(_circle),
    "no_graph_for_serving": edited(lambda meta: meta.meta_info_def.ClearField("tags")),
    "signature_of_what_is_not_there": edited(
        lambda meta: setattr(signature(meta).outputs["output_0"], "name", "../../canary:0")
    ),
    "signature_without_outputs": edited(lambda meta: signature(meta).outputs.clear()),
    "variables_of_another_shape": edited(lambda meta: [
        node.attr["shape"].shape.dim.add(size=HUGE) for node in meta.graph_def.node if node.op == "VarHandleOp"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def told(given_to_convert: Any) -> Any:
    return given_to_convert(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_one_clear_error_and_nothing_left(told: Any, name: str) -> None:
    one_clear_error(told, name)


@pytest.mark.parametrize(
    ("name", "operator"),
    [("constant_of_terabytes", "Const"), ("fill_of_terabytes", "Fill"), ("tile_of_terabytes", "Tile"),
     ("range_of_terabytes", "Range")],
)  # fmt: skip
def test_a_tensor_larger_than_memory_is_named_before_anything_runs(told: Any, name: str, operator: str) -> None:
    error, _ = told[name]
    assert error["what"] == "the model computes a tensor that is larger than memory"
    assert error["got"].startswith(f"{operator} (") and error["wanted"] == "at most 6 GiB"


def test_what_only_running_tells_is_told_as_memory(told: Any) -> None:
    error, _ = told["fill_of_what_only_running_tells"]
    assert error["what"] == "the source needs more memory than it may have"


@pytest.mark.parametrize("bound", [3e38, float("inf")])
def test_a_loop_without_end_is_ended(tmp_path: Path, bound: float) -> None:
    """By the time that one run of a loop has: TensorFlow itself cannot be interrupted."""
    tf = _tf()
    going = lambda value: tf.reduce_sum(tf.abs(value)) < bound  # noqa: E731
    serving(lambda x, w: tf.while_loop(going, lambda value: [tf.nn.relu(value)], [x])[0])(tmp_path / "model")
    with pytest.raises(EdgerunError, match="a loop in the model does not end"):
        edgerun.convert(tmp_path / "model", output=tmp_path / "out.onnx", limits=Limits(loop_seconds=1))
    assert os.listdir(tmp_path) == ["model"]
