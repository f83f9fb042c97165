"""`edgerun inspect` on what targets write: history, contracts and door of the ONNX file that it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.contents import Contents
from edgerun.errors import EdgerunError
from edgerun.model import Model, Step
from tests.verbs.conftest import Ran

Cli = Callable[..., Ran]
PREPROCESSING = {"size": [8, 8], "layout": "NCHW"}
POSTPROCESSING = {"kind": "classes", "output": "y", "labels": ["a", "b", "c", "d"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Conv and a MatMul, 864 + 1,296 floats, with a Step and both contracts."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"), helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"), helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "v"], ["y"], "product"),
    ]  # fmt: skip
    weights = {"w": (32, 3, 3, 3), "v": (32, 4)}
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(generator.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    step = {"name": "converters/x", "version": "1", "options": {"k": 1}, "before": "a", "after": "b", "data": ""}
    told = {"history": [step], "preprocessing": PREPROCESSING, "postprocessing": POSTPROCESSING}
    helper.set_model_props(proto, {f"edgerun.{key}": json.dumps(value) for key, value in told.items()})
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def needs(target: str) -> None:
    if reason := registry.target(target, usable=False).available():
        pytest.skip(f"{target}: {reason}")


def test_what_compress_made_for_openvino(cli: Cli, model: Path, tmp_path: Path) -> None:
    """README's own example: every Step, digests and options too, as in the same compression's .onnx."""
    needs("openvino")
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(1).standard_normal((40, 3, 8, 8)).astype(np.float32))
    for name in ("small.onnx", "small.xml"):
        ran = cli("compress", model, "--calibration", tmp_path / "c.npz", "--target", "openvino", "-o", tmp_path / name)
        assert ran.code == 0, ran.err
    told = json.loads(cli("inspect", tmp_path / "small.xml", "--json").out)
    expected = json.loads(cli("inspect", tmp_path / "small.onnx", "--json").out)
    for key in ("history", "inputs", "outputs", "preprocessing", "postprocessing", "digest"):
        assert told[key] == expected[key], key
    assert [step["name"] for step in told["history"]] == ["converters/x", "quantize/static_int8"]
    assert told["target"] == "openvino" and told["ops"]["FakeQuantize"] >= 1 and told["weights"]["int8"]["bytes"] > 0
    assert told["file_bytes"] == sum((tmp_path / f"small.{end}").stat().st_size for end in ("xml", "bin"))
    text = cli("inspect", tmp_path / "small.xml").out
    for words in (
        "OpenVINO IR 11, for target openvino",
        "step 2: quantize/static_int8",
        "x:float32[n,3,8,8]",
        "classes",
    ):
        assert words in text


@pytest.mark.parametrize(("target", "suffix"), [("openvino", ".xml"), ("onnxruntime", ".ort")])
def test_what_compile_made(cli: Cli, model: Path, tmp_path: Path, target: str, suffix: str) -> None:
    needs(target)
    out = tmp_path / f"m{suffix}"
    assert cli("compile", model, "--target", target, "-o", out).code == 0
    found, source = edgerun.inspect(out), Model.load(model)
    assert isinstance(found, Contents) and found.target == target
    assert (found.inputs, found.outputs, found.history) == (source.inputs, source.outputs, source.history)
    assert (found.preprocessing, found.postprocessing) == (PREPROCESSING, POSTPROCESSING)
    assert found.digest == source.digest()
    assert found.history == (Step("converters/x", "1", {"k": 1}, "a", "b"),)
    assert found.weights["float32"].elements >= 32 * 27 + 32 * 4
    assert sum(found.ops.values()) >= 4
    ran = cli("inspect", out)
    assert ran.code == 0 and "step 1: converters/x" in ran.out and "y:float32[n,4]" in ran.out


def test_an_engine_of_tensorrt(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Its header alone is read, so that any machine with the package can tell."""
    needs("tensorrt")
    from edgerun.targets import _tensorrt_file as file

    source = Model.load(model)
    header = {
        "inputs": file.specs(source.inputs), "outputs": file.specs(source.outputs), "preprocessing": PREPROCESSING,
        "postprocessing": POSTPROCESSING, "digest": source.digest(), "device": {"capability": "8.7"},
        "history": [{"name": "converters/x", "version": "1", "options": {"k": 1}, "before": "a", "after": "b"}],
    }  # fmt: skip
    (tmp_path / "m.engine").write_bytes(file.pack(header, b"plan"))
    told = json.loads(cli("inspect", tmp_path / "m.engine", "--json").out)
    assert told["history"][0]["name"] == "converters/x" and told["device"] == {"capability": "8.7"}
    assert told["inputs"][0]["shape"] == ["n", 3, 8, 8] and told["preprocessing"] == PREPROCESSING


def test_a_recipe(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Its model's door, ops, weights and history; for whom it is, with which options; and that it is to be finished."""
    path, size = tmp_path / "m.recipe", ("--size", "n=1,2,4")
    ran = cli("compile", model, "--target", "tensorrt", "--device", "jetson-orin-nano", *size, "-o", path)
    assert ran.code == 0, ran.err
    found, source = edgerun.inspect(path), Model.load(model)
    assert isinstance(found, Contents) and found.target == "tensorrt" and found.options == {"sizes": {"n": (1, 2, 4)}}
    assert found.device == {"device": "jetson-orin-nano", "arch": "aarch64", "capability": "8.7"}
    assert (found.digest, found.history, found.inputs) == (source.digest(), source.history, source.inputs)
    assert found.weights["float32"].elements == 32 * 27 + 32 * 4 and found.ops["Conv"] == 1
    assert (found.preprocessing, found.postprocessing) == (PREPROCESSING, POSTPROCESSING)
    text = cli("inspect", path).out
    for words in ("jetson-orin-nano", '{"sizes": {"n": [1, 2, 4]}}', "edgerun warm", "step 1: converters/x", "Conv"):
        assert words in text, text
    assert json.loads(cli("inspect", path, "--json").out)["options"] == {"sizes": {"n": [1, 2, 4]}}


def test_what_opens_files_says_who_finishes_a_recipe(cli: Cli, model: Path, tmp_path: Path) -> None:
    path, arrays = tmp_path / "m.recipe", tmp_path / "x.npz"
    assert cli("compile", model, "--target", "tensorrt", "-o", path).code == 0
    np.savez(arrays, x=np.zeros((1, 3, 8, 8), np.float32))
    feeds = ("--feeds", arrays, "-o", tmp_path / "y.npz")
    for words in (("run", path, *feeds), ("run", path, *feeds, "--target", "onnxruntime"), ("bench", path)):
        ran = cli(*words)
        assert ran.code == 2 and "do: edgerun warm NAME.recipe on its device" in ran.err, ran.err
    with pytest.raises(EdgerunError, match="edgerun warm NAME.recipe"):
        edgerun.load(path)


def test_an_ir_from_elsewhere(cli: Cli, model: Path, tmp_path: Path) -> None:
    """No history, and OpenVINO's own names of the door."""
    ov = pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    ov.save_model(ov.Core().read_model(model), tmp_path / "other.xml", compress_to_fp16=False)
    ran = cli("inspect", tmp_path / "other.xml")
    assert ran.code == 0 and "edgerun did not write it" in ran.out and "step 1" not in ran.out
    told = json.loads(cli("inspect", tmp_path / "other.xml", "--json").out)
    assert told["history"] == [] and told["preprocessing"] is None
    assert told["ops"]["Convolution"] == 1 and told["weights"]["float32"]["elements"] >= 32 * 27 + 32 * 4


def test_weights_of_another_age(cli: Cli, model: Path, tmp_path: Path) -> None:
    needs("openvino")
    assert cli("compile", model, "--target", "openvino", "-o", tmp_path / "m.xml").code == 0
    data = bytearray((tmp_path / "m.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "m.bin").write_bytes(bytes(data))
    ran = cli("inspect", tmp_path / "m.xml")
    assert ran.code == 2 and "the weights are not this graph's" in ran.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no bin", "the weights of the IR are missing\n  got: no "),
        ("short bin", "m.bin: 1000 bytes\n  wanted: SIZE bytes, as m.xml says"),
        ("another's bin", "m.bin: 64 bytes\n  wanted: SIZE bytes, as m.xml says"),
        ("short xml", "the graph of the IR is cut off"),
        ("no xml", "this is no OpenVINO IR"),
        ("an op of nobody's", "edgerun compile it again with the OpenVINO that is here"),
    ],
)
def test_what_is_broken_of_an_ir_is_told_by_every_command(
    cli: Cli, model: Path, tmp_path: Path, damage: str, message: str
) -> None:
    """An IR cannot be converted, so nobody is sent to do that. The .bin has 32·27 + 32·4 floats, and a few shapes."""
    needs("openvino")
    assert cli("compile", model, "--target", "openvino", "-o", tmp_path / "m.xml").code == 0
    xml, weights = tmp_path / "m.xml", tmp_path / "m.bin"
    message, size = message.replace("SIZE", str(weights.stat().st_size)), weights.stat().st_size
    assert 4 * (32 * 27 + 32 * 4) <= size < 4 * (32 * 27 + 32 * 4) + 200
    if damage == "no bin":
        weights.unlink()
    elif damage.endswith("bin"):
        weights.write_bytes(weights.read_bytes()[: 1000 if damage == "short bin" else 64])
    elif damage == "short xml":
        xml.write_bytes(xml.read_bytes()[:2000])
    else:
        found = xml.read_bytes()
        xml.write_bytes(b"hello" if damage == "no xml" else found.replace(b'type="Convolution"', b'type="Nobody"'))
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    for arguments in (
        ("inspect", xml), ("bench", xml), ("run", xml, "--feeds", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    ):  # fmt: skip
        ran = cli(*arguments)
        assert ran.code == 2 and message in ran.err and "edgerun convert" not in ran.err, (arguments, ran.err)
