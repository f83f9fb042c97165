"""What is read from an ONNX file where it lies, against the onnx package; and what sessions on a target say of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto, helper

import edgerun
from edgerun import onnx_file, registry
from edgerun.runtime import Options

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
named (float[batch, 3, size, size] image, int64[batch] length, float[3] bias) => (float[batch, 3, size, size] y) {
    a = Add(image, image)
    y = Abs(a)
}"""
RUNNERS = [n for n in ("onnxruntime", "openvino", "tensorrt") if not registry.target(n, usable=False).available()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with names of dimensions, one of them only at a rank of 1, and metadata of two kinds."""
    proto = onnx.parser.parse_model(MODEL)
    helper.set_model_props(proto, {"edgerun.preprocessing": '{"version": 1}', "author": "ä"})
    onnx.save(proto, tmp_path / "named.onnx")
    return tmp_path / "named.onnx"


def test_it_is_what_onnx_reads(path: Path) -> None:
    proto = onnx.load(path)
    for told in (onnx_file.told(path), onnx_file.told(path.read_bytes())):
        assert told.metadata == {prop.key: prop.value for prop in proto.metadata_props}
        for value in (*proto.graph.input, *proto.graph.output):
            assert told.dims[value.name] == tuple(dim.dim_param for dim in value.type.tensor_type.shape.dim)


def test_values_that_are_no_tensors_have_no_dimensions() -> None:
    inputs = [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)], "g", inputs, outputs)
    told = onnx_file.told(helper.make_model(graph).SerializeToString())
    assert told.dims == {"s": (), "y": ()} and told.bare == {"s", "y"} and told.metadata == {}


def test_a_scalar_has_a_shape_and_what_has_none_is_told() -> None:
    doors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", None), ("y", []))]
    graph = helper.make_graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], "g", doors[:1], doors[1:])
    told = onnx_file.told(helper.make_model(graph).SerializeToString())
    assert told.dims == {"x": (), "y": ()} and told.bare == {"x"}


@pytest.mark.parametrize("target", [name for name in RUNNERS if registry.target(name).runnable() is None])
@pytest.mark.parametrize("in_memory", [False, True])
def test_every_target_says_the_same_of_a_file(path: Path, target: str, in_memory: bool) -> None:
    sizes = {"batch": (1, 2, 4), "size": (4, 4, 8)}
    with edgerun.load(path.read_bytes() if in_memory else path, target, Options(threads=1, sizes=sizes)) as session:
        assert dict(session.metadata) == {"edgerun.preprocessing": '{"version": 1}', "author": "ä"}
        assert {str(spec) for spec in session.inputs} >= {"image:float32[batch,3,size,size]"}
        assert [str(spec) for spec in session.outputs] == ["y:float32[batch,3,size,size]"]
        session.warm_up(sizes={"size": 4, "batch": 2})


@pytest.mark.skipif("openvino" not in RUNNERS, reason="needs openvino")
def test_pictures_are_answered_from_a_file_on_openvino(tmp_path: Path) -> None:
    """The contracts were lost there: `edgerun run c.onnx --data p.png --target openvino` was refused."""
    from PIL import Image

    from edgerun.preprocess import Preprocessing

    source = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
mean (float[batch, 3, 4, 4] image) => (float[batch, 3] y) { y = ReduceMean<axes = [2, 3], keepdims = 0>(image) }""")
    contracts = {"preprocessing": Preprocessing((4, 4)).to_json(), "postprocessing": {"kind": "classes", "most": 1}}
    helper.set_model_props(source, {f"edgerun.{name}": json.dumps(told) for name, told in contracts.items()})
    onnx.save(source, tmp_path / "mean.onnx")
    Image.fromarray(np.full((4, 4, 3), (10, 200, 30), np.uint8)).save(tmp_path / "p.png")
    for target in ("onnxruntime", "openvino"):
        (told,) = edgerun.predict(tmp_path / "mean.onnx", tmp_path / "p.png", target=target).values()
        assert told.to_json()[0]["index"] == 1, target  # green
