"""Preprocessing in the graph: the new model on bytes against the old one on what the contract makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.preprocess import Preprocessing
from edgerun.verbs.folding import folded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Preprocessing(size=(18, 18), resize="shortest", crop=(16, 12), scale=1 / 255, mean=MEAN, std=STD)
DRAW = np.random.default_rng(0)
WEIGHTS = {"w": DRAW.standard_normal((4, 3, 3, 3)).astype(np.float32), "b": np.ones(4, np.float32)}
FLOAT = TensorProto.FLOAT


def network(path: Path, *, pads: int = 1, nhwc: bool = False, kind: int = FLOAT, first: str = "Conv") -> Path:
    """[n, 3, 16, 12], or NHWC with a Transpose in front, to y: a Conv (padded or not), Relu and the mean; or a Sum."""
    value, dtype = helper.make_tensor_value_info, helper.tensor_dtype_to_np_dtype(kind)
    x, nodes = "x", []
    shape: list[str | int | None] = ["n", 16, 12, 3] if nhwc else ["n", 3, 16, 12]
    if nhwc:
        nodes, x = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])], "t"
    if first == "Conv":
        nodes += [
            helper.make_node("Conv", [x, "w", "b"], ["c"], pads=[pads] * 4),
            helper.make_node("Relu", ["c"], ["r"]),
        ]
        x = "r"
    nodes += [helper.make_node("GlobalAveragePool", [x], ["y"])]
    graph = helper.make_graph(
        nodes, "net", [value("x", kind, shape)], [value("y", kind, ["n", 4 if first == "Conv" else 3, 1, 1])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in WEIGHTS.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def ran(model: Path | Model, x: np.ndarray) -> np.ndarray:
    """By the reference evaluator: no runtime's optimizations."""
    from onnx.reference import ReferenceEvaluator

    proto = model.to_proto() if isinstance(model, Model) else onnx.load(model)
    (y,) = ReferenceEvaluator(proto).run(["y"], {"x": x})
    return np.asarray(y)


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.ir.graph]


CASES: list[tuple[dict[str, Any], Preprocessing, list[str]]] = [
    # Where the Conv pads, zeros stand for the mean: the offsets stay in front of it.
    ({}, IMAGENET, ["Cast", "Transpose", "Add"]),
    ({"pads": 0}, IMAGENET, ["Cast", "Transpose"]),
    ({}, Preprocessing(size=(16, 12), scale=1 / 255), ["Cast", "Transpose"]),
    ({}, Preprocessing(size=(16, 12), colour="BGR", mean=(103.9, 116.8, 123.7)), ["Cast", "Transpose", "Add"]),
    ({"first": "Pool"}, Preprocessing(size=(16, 12), colour="BGR", scale=2.0), ["Cast", "Transpose", "Gather", "Mul"]),
    ({"nhwc": True, "pads": 0}, Preprocessing(size=(16, 12), layout="NHWC", mean=MEAN, std=STD), ["Cast", "Transpose"]),
    ({"kind": TensorProto.FLOAT16}, IMAGENET, ["Cast", "Transpose", "Mul", "Add", "Cast"]),
]


@pytest.mark.parametrize(("net", "contract", "left"), CASES)
def test_the_model_on_bytes_is_the_model_on_the_contract(
    tmp_path: Path, net: dict[str, Any], contract: Preprocessing, left: list[str]
) -> None:
    path = network(tmp_path / "net.onnx", **net)
    made = folded(path, contract)
    (given,) = made.inputs
    assert (given.name, given.dtype, given.shape) == ("x", "uint8", ("n", 16, 12, 3))
    assert ops(made)[: len(left)] == left and made.history[-1].options["in the graph"] == left
    onnx.checker.check_model(made.to_proto(), full_check=True)
    pixels = DRAW.integers(0, 256, (3, 16, 12, 3), dtype=np.uint8)
    exact = contract if "kind" not in net else contract.fitted(Model.load(path).inputs)
    want, got = ran(path, exact.arithmetic(pixels)), ran(made, pixels)
    assert np.abs(got - want).max() <= (3e-3 if "kind" in net else 2e-6) * np.abs(want).max()


def test_what_is_left_for_the_host_gives_the_same_picture(tmp_path: Path) -> None:
    made = folded(network(tmp_path / "net.onnx"), IMAGENET)
    left = Preprocessing.from_json(made.preprocessing or {})
    assert (left.size, left.resize, left.crop, left.dtype, left.layout) == (
        (18, 18),
        "shortest",
        (16, 12),
        "uint8",
        "NHWC",
    )
    image = DRAW.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    want = ran(tmp_path / "net.onnx", IMAGENET.apply(image)[None])
    assert np.abs(ran(made, left.apply(image)[None]) - want).max() <= 2e-6 * np.abs(want).max()


def test_grey_pictures_stay_grey_on_the_host() -> None:
    assert Preprocessing(size=(4, 4), colour="L", scale=0.5).host == Preprocessing(
        size=(4, 4), colour="L", layout="NHWC", dtype="uint8"
    )


def test_what_cannot_be_folded_says_why(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    made = folded(path, IMAGENET)
    with pytest.raises(EdgerunError, match="takes the picture's bytes already"):
        folded(made)
    with pytest.raises(EdgerunError, match="no preprocessing contract to fold"):
        folded(path)
    with pytest.raises(EdgerunError, match=r"does not fit[\s\S]*\[3, 16, 16\][\s\S]*n,3,16,12"):
        folded(path, Preprocessing(size=(16, 16)))
    with pytest.raises(Unsupported, match="rounds to integers"):
        folded(
            network(tmp_path / "i.onnx", kind=TensorProto.INT8, first="Pool"),
            Preprocessing(size=(16, 12), dtype="int8"),
        )


HUGGING_FACE = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 12}, "resample": 2,
                "image_mean": MEAN, "image_std": STD}  # fmt: skip


def test_convert_keeps_a_contract_of_another_tool(tmp_path: Path, cli: Any) -> None:
    path, config = network(tmp_path / "net.onnx"), tmp_path / "preprocessor_config.json"
    config.write_text(json.dumps(HUGGING_FACE))
    done = cli("convert", path, "--preprocessing", config, "-o", tmp_path / "kept.onnx")
    assert done.code == 0 and '"mean": [0.485' in done.out
    assert Model.load(tmp_path / "kept.onnx").preprocessing["size"] == [16, 12]  # type: ignore[index]
    done = cli("convert", tmp_path / "kept.onnx", "--fold-preprocessing", "-o", tmp_path / "bytes.onnx", "--json")
    assert done.code == 0 and json.loads(done.out)["inputs"] == ["x:uint8[n,16,12,3]"]
    config.write_text(json.dumps({**HUGGING_FACE, "resample": 9}))
    done = cli("convert", path, "--preprocessing", config, "-o", tmp_path / "no.onnx")
    assert done.code == 2 and "'resample'" in done.err and not (tmp_path / "no.onnx").exists()
    config.write_text(json.dumps({**HUGGING_FACE, "size": 16}))
    done = cli("convert", path, "--preprocessing", config, "-o", tmp_path / "no.onnx")
    assert done.code == 2 and "does not fit" in done.err and not (tmp_path / "no.onnx").exists()


def test_convert_takes_the_contract_that_an_ultralytics_export_tells(tmp_path: Path) -> None:
    proto = onnx.load(network(tmp_path / "net.onnx"))
    told = {"task": "detect", "stride": "4", "imgsz": "[16, 12]", "names": "{0: 'person', 1: 'bus'}"}
    helper.set_model_props(proto, told)
    onnx.save(proto, tmp_path / "yolo.onnx")
    made = edgerun.convert(tmp_path / "yolo.onnx")
    assert made.preprocessing == Preprocessing(
        size=(16, 12), resize="letterbox", fill=114, antialias=False, scale=1 / 255
    ).to_json()  # fmt: skip
    assert json.loads(made.ir.metadata_props["classes"]) == ["person", "bus"]
    helper.set_model_props(proto, {**told, "imgsz": "[64, 64]"})  # metadata that does not fit is no reason to refuse
    onnx.save(proto, tmp_path / "odd.onnx")
    assert edgerun.convert(tmp_path / "odd.onnx").preprocessing is None


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_compress_folds_first_and_calibrates_on_bytes(tmp_path: Path, cli: Any, target: str) -> None:
    path, pictures = network(tmp_path / "net.onnx"), tmp_path / "pictures"
    pictures.mkdir()
    for number in range(20):
        Image.fromarray(DRAW.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    contract = tmp_path / "contract.json"
    contract.write_text(json.dumps(IMAGENET.to_json()))
    done = cli("compress", path, "--target", target, "--fold-preprocessing", "--preprocessing", contract,
               "--calibration", pictures, "-o", tmp_path / "small.onnx")  # fmt: skip
    assert done.code == 0, done.err
    small = Model.load(tmp_path / "small.onnx")
    assert [step.name for step in small.history] == ["preprocessing/fold", "quantize/static_int8"]
    assert small.preprocessing == IMAGENET.host.to_json() and small.inputs[0].dtype == "uint8"
    image = np.asarray(Image.open(pictures / "0.png"))
    want = ran(path, IMAGENET.apply(image)[None])
    with edgerun.load(tmp_path / "small.onnx", target) as session:
        got = session.run({"x": IMAGENET.host.apply(image)[None]})["y"]
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
