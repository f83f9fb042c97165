"""TensorFlow modules, SavedModels and `.tflite` files made here; tests that ask for `tf` skip where there is none. And
how hostile files are given to `convert`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun import parity, registry, sandbox
from edgerun.converters import _ort
from edgerun.model import Model
from edgerun.passes import Conversion, Feeds
from edgerun.sandbox import Limits


def ops(model: Model) -> Counter[str]:
    """How many nodes there are of each op, in subgraphs not counted."""
    return Counter(node.op_type for node in model.ir.graph)


def judged(path: Path, opset: int = 20) -> tuple[Conversion, parity.Parity]:
    """A `.tflite` file's conversion, and its comparison with TFLite's interpreter, which must pass."""
    from edgerun.converters import tflite

    found = tflite.convert(path, inputs=[], factory=None, opset=opset)
    given: dict[str, Any] = {"feeds": found.feeds, "data": found.data, "parts": found.parts}
    result = parity.check(found.model, _ort.runner(found.model.to_bytes()), found.run, found.run64, **given)
    assert result.passed, result
    return found, result


def ran_on(target: str, model: Model, feeds: Feeds, folder: Path) -> dict[str, np.ndarray]:
    """Outputs of the model, written to `folder`, on a target; the test is skipped where that is not installed."""
    if reason := registry.target(target, usable=False).available():
        pytest.skip(reason)
    model.save(folder / "net.onnx")
    with edgerun.load(folder / "net.onnx", target=target) as session:
        return session.run(feeds)


def packed(model: Any) -> bytes:
    """A model of the schema's objects as a file."""
    flatbuffers = importlib.import_module("flatbuffers")
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="session")
def tf() -> Any:
    for package in ("tensorflow", "tf2onnx"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'edgerun[tensorflow]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return importlib.import_module("tensorflow")


@pytest.fixture
def module(tf: Any) -> Callable[..., Any]:
    """`module(serve, *signature, **fields)`: a tf.Module of a variable `w` [4] and the fields, with `serve` as its
    tf.function; the signature is one input x:float32[None, 4] unless another is given."""

    def build(serve: Callable[..., Any], *signature: Any, **fields: Any) -> Any:
        class Net(tf.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                self.w = tf.Variable([0.5, -1.0, 2.0, 3.0])
                for name, value in fields.items():
                    setattr(self, name, value)  # through tf.Module, which tracks what is to be saved
                wanted = signature or (tf.TensorSpec([None, 4], tf.float32, name="x"),)
                self.serve = tf.function(lambda *values: serve(self, *values), input_signature=wanted, autograph=False)

        return Net()

    return build


@pytest.fixture
def saved(tf: Any, module: Callable[..., Any]) -> Callable[..., Path]:
    """`saved(folder, serve, *signature, **fields)`: such a module as a SavedModel."""

    def save(folder: Path, serve: Callable[..., Any], *signature: Any, **fields: Any) -> Path:
        net = module(serve, *signature, **fields)
        tf.saved_model.save(net, str(folder), signatures=net.serve)
        return folder

    return save


# `convert` itself, many times in one limited child in place of a child each: what reads the file is the same. Each file
# has the working folder for itself; told are its error as JSON values (None: it was converted) and what it left there.
JOB = """
def run(files):
    import os, traceback
    from edgerun import errors
    from edgerun.verbs import convert
    convert.sandbox.call = lambda function, arguments, folder, limits: convert.convert_here(**arguments)
    told = {}
    for name, (path, options) in files.items():
        os.chdir(os.path.dirname(path))
        before, error = set(os.listdir()), None
        try:
            convert.convert(path, output="out.onnx", **options)
        except errors.EdgerunError as caught:
            error = errors.to_json(caught)
        except Exception as caught:
            error = {"kind": "bug", "what": traceback.format_exc()}
        told[name] = [error, sorted(set(os.listdir()) - before)]
    return told
"""
Told = dict[str, tuple[dict[str, Any] | None, list[str]]]


@pytest.fixture(scope="module")
def given_to_convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Told]:
    """`given_to_convert(makers, **options)`: how `convert` ends on each file of `makers` (its name: what writes it)."""

    def given(makers: dict[str, Callable[[Path], object]], **options: Any) -> Told:
        files, top = {}, tmp_path_factory.mktemp("hostile")
        (top / "edgerun_hostile_job.py").write_text(JOB)
        (top / "secret").write_bytes(b"s" * 64)
        for number, (name, make) in enumerate(makers.items()):
            folder = top / str(number)
            folder.mkdir()
            make(folder / name)
            files[name] = (str(folder / name), options)
        (top / "answer").mkdir()
        sys.path.insert(0, str(top))
        try:
            limits = Limits(memory=6 << 30)
            found: Told = sandbox.call("edgerun_hostile_job:run", {"files": files}, top / "answer", limits)
        finally:
            sys.path.remove(str(top))
        assert not list(top.rglob("canary")), "a file's code ran"
        return found

    return given


@pytest.fixture
def lite(tf: Any, tmp_path: Path) -> Callable[..., Path]:
    """`lite(serve, *shapes, kind="float32")`: a function of float tensors as a `.tflite` file.

    `kind` is float32, float16, dynamic (weights alone in codes), or int8 and uint8 (codes at the door too), or int8f
    (codes with floats at the door), calibrated on N(0, 1). The inputs are called a, b, …
    """

    def build(serve: Callable[..., Any], *shapes: Sequence[int | None], kind: str = "float32") -> Path:
        signature = [tf.TensorSpec(shape, tf.float32, name="abc"[i]) for i, shape in enumerate(shapes)]
        function = tf.function(serve, input_signature=signature, autograph=False).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if kind in ("int8", "int8f", "uint8"):
            draw, sizes = np.random.default_rng(1), [[size or 1 for size in shape] for shape in shapes]
            converter.representative_dataset = lambda: (
                [draw.normal(size=size).astype(np.float32) for size in sizes] for _ in range(20)
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if kind in ("int8", "uint8"):
            converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(kind)
        path = tmp_path / "net.tflite"
        path.write_bytes(converter.convert())
        return path

    return build
