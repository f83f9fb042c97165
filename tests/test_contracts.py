"""Contracts out of other tools' files, against what those tools publish, written here by hand with Pillow and torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgerun import contracts
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.preprocess import Preprocessing
from edgerun.verbs.meaning import class_names

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colours with edges, as photos have."""
    few = np.random.default_rng(height * width).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC))


PICTURES = [picture(120, 160), picture(161, 97), picture(64, 64), picture(37, 211)]


def resized(image: np.ndarray, height: int, width: int, method: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def shortest(image: np.ndarray, edge: int, method: Image.Resampling) -> np.ndarray:
    """The short side becomes `edge`, the long one int(edge · long / short): torchvision's and Transformers' rule."""
    height, width = image.shape[:2]
    if width <= height:
        return resized(image, int(edge * height / width), edge, method)
    return resized(image, edge, int(edge * width / height), method)


def covered(edge: int, side: int, rounds: Any, mean: Any, std: Any) -> Any:
    """The short side to `edge` (bicubic), the middle `side`, normalized."""
    return lambda image: normalized(cut(shortest(image, edge, Image.Resampling.BICUBIC), side, rounds), mean, std)


def cut(image: np.ndarray, side: int, rounds: Any) -> np.ndarray:
    top, left = rounds((image.shape[0] - side) / 2), rounds((image.shape[1] - side) / 2)
    return image[top : top + side, left : left + side]


def normalized(image: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    made: np.ndarray = ((image / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    return made


def agree(contract: Preprocessing, wanted: Any) -> None:
    for image in PICTURES:
        got, want = contract.apply(image), wanted(image)
        assert got.shape == want.shape == contract.shape
        assert np.abs(got - want).max() < 1e-5


VIT = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 48, "width": 40},
       "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": HALF,
       "image_std": HALF}  # fmt: skip
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 51}, "crop_size": 44, "resample": 3,
        "do_convert_rgb": True, "processor_class": "CLIPProcessor", "image_mean": MEAN, "image_std": STD}  # fmt: skip


def test_transformers_stretches_and_normalizes() -> None:
    method = Image.Resampling.BILINEAR
    agree(contracts.parsed(VIT), lambda image: normalized(resized(image, 48, 40, method), HALF, HALF))


def test_transformers_cuts_the_middle_rounding_down() -> None:
    wanted = covered(51, 44, int, MEAN, STD)
    agree(contracts.parsed(CLIP), wanted)
    old = {**CLIP, "feature_extractor_type": "CLIPFeatureExtractor", "size": 51}
    del old["image_processor_type"]
    agree(contracts.parsed(old), wanted)


def test_transformers_kinds_that_resize_in_their_own_way() -> None:
    convnext = {"image_processor_type": "ConvNextImageProcessorFast", "size": {"shortest_edge": 56}, "crop_pct": 0.875,
                "resample": 3}  # fmt: skip
    agree(contracts.parsed(convnext), covered(64, 56, int, HALF, HALF))
    large = contracts.parsed({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}})
    assert (large.size, large.resize, large.crop) == ((384, 384), "stretch", None)
    levit = {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 49}, "crop_size": 49}
    agree(contracts.parsed(levit), covered(56, 49, int, MEAN, STD))


def test_transformers_kinds_with_arithmetic_of_their_own() -> None:
    efficient = {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 40, "width": 40},
                 "resample": 0, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": True,
                 "image_mean": MEAN, "image_std": STD}  # fmt: skip

    def twice(image: np.ndarray) -> np.ndarray:
        small = resized(image, 40, 40, Image.Resampling.NEAREST) / 127.5 - 1
        made: np.ndarray = (((small - MEAN) / STD - 0) / STD).transpose(2, 0, 1)
        return made

    agree(contracts.parsed(efficient), twice)
    mobile = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 48}, "crop_size": 40}

    def flipped(image: np.ndarray) -> np.ndarray:
        small = cut(shortest(image, 48, Image.Resampling.BICUBIC), 40, int)
        return normalized(small[:, :, ::-1], 0, 1)

    agree(contracts.parsed(mobile), flipped)


@pytest.mark.parametrize("wrapped", [False, True])
def test_timm_covers_by_crop_pct_and_cuts_to_the_nearest_even(wrapped: bool) -> None:
    cfg: dict[str, Any] = {"input_size": [3, 45, 45], "interpolation": "bicubic", "crop_pct": 0.9, "mean": MEAN,
                           "std": STD, "crop_mode": "center", "first_conv": "conv1", "pool_size": [7, 7]}  # fmt: skip
    given = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": cfg} if wrapped else cfg
    agree(contracts.parsed(given), covered(50, 45, round, MEAN, STD))


def test_timm_squash_stretches_before_it_cuts() -> None:
    cfg = {"input_size": [3, 40, 60], "interpolation": "bilinear", "crop_pct": 0.8, "crop_mode": "squash"}

    def wanted(image: np.ndarray) -> np.ndarray:
        return normalized(resized(image, 50, 75, Image.Resampling.BILINEAR)[5:45, 8:68], MEAN, STD)

    agree(contracts.parsed(cfg), wanted)


def yolo(**other: str) -> dict[str, str]:
    return {"task": "detect", "stride": "32", "imgsz": "[64, 96]", "names": "{0: 'person', 1: 'bicycle'}", **other}


def test_ultralytics_letterboxes_between_pixel_centres() -> None:
    torch = pytest.importorskip("torch")
    contract = contracts.parsed(yolo())
    for image in PICTURES:
        ratio = min(64 / image.shape[0], 96 / image.shape[1])
        height, width = round(image.shape[0] * ratio), round(image.shape[1] * ratio)
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double()
        small = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)[
            0
        ].numpy()
        top, left = round((64 - height) / 2 - 0.1), round((96 - width) / 2 - 0.1)
        wanted = np.full((3, 64, 96), 114.0)
        wanted[:, top : top + height, left : left + width] = small
        assert np.abs(contract.apply(image) * 255 - wanted).max() <= 0.5 + 1e-4  # rounded to bytes


def test_ultralytics_classifiers_cut_the_shortest_edge() -> None:
    contract = contracts.parsed(yolo(task="classify", imgsz="[64, 64]"))
    agree(contract, lambda image: normalized(cut(shortest(image, 64, Image.Resampling.BILINEAR), 64, round), 0, 1))


def test_edgeruns_own_file_is_read_as_before(tmp_path: Path) -> None:
    contract = Preprocessing(size=(8, 8), crop=(6, 6), centre="floor", antialias=False)
    path = tmp_path / "contract.json"
    path.write_text(json.dumps(contract.to_json()))
    assert contracts.read(path) == contract


def saved(path: Path, **metadata: str) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["y"])], "yolo",
        [value("images", TensorProto.FLOAT, [1, 3, 64, 96])], [value("y", TensorProto.FLOAT, [1, 3, 64, 96])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_a_models_metadata_is_a_contract(tmp_path: Path) -> None:
    path = saved(tmp_path / "yolo.onnx", **yolo())
    assert contracts.read(path) == contracts.parsed(yolo())
    assert class_names(Model.load(path)) == ["person", "bicycle"]
    own = {"edgerun.preprocessing": json.dumps(Preprocessing(size=(5, 5)).to_json())}
    assert contracts.read(saved(tmp_path / "own.onnx", **own)).size == (5, 5)
    with pytest.raises(EdgerunError, match="holds no preprocessing contract"):
        contracts.read(saved(tmp_path / "none.onnx"))


def test_a_contract_that_is_taken_away_is_gone_from_the_file(tmp_path: Path) -> None:
    spec = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [spec],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])])  # fmt: skip
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    told = model.retold(Preprocessing.from_json({"size": [8, 8]}).to_json(), ()).answering({"kind": "classes"})
    assert {p.key for p in told.to_proto().metadata_props} == {"edgerun.preprocessing", "edgerun.postprocessing"}
    told.retold(None, ()).answering(None).save(tmp_path / "bare.onnx")
    assert not onnx.load(tmp_path / "bare.onnx").metadata_props


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**VIT, "resample": 7}, r"'resample'[\s\S]*got: 7[\s\S]*3 \(bicubic\)"),
        ({**VIT, "resample": "bicubic"}, "'resample'"),
        ({**VIT, "do_resize": False}, "'do_resize'"),
        ({**VIT, "do_pad": True}, "'do_pad'"),
        ({**VIT, "size_divisor": 32}, "'size_divisor'"),
        ({**VIT, "auto_map": {"AutoImageProcessor": "mine.Processor"}}, "'auto_map'"),
        ({**VIT, "size": {"shortest_edge": 800, "longest_edge": 1333}}, "'size'"),
        ({**VIT, "size": {"shortest_edge": 224}}, r"'size'[\s\S]*one size"),
        ({**VIT, "size": "224"}, "'size'"),
        ({**VIT, "size": True}, "'size'"),
        ({**VIT, "size": {"height": 10**9, "width": 4}}, "at most 32768"),
        ({**VIT, "image_std": [0, 1, 1]}, "'std'"),
        ({**VIT, "image_mean": "grey"}, "'image_mean'"),
        ({**VIT, "data_format": "channels_odd"}, "'data_format'"),
        ({**CLIP, "crop_size": 99}, r"'crop_size'[\s\S]*padded"),
        ({"image_processor_type": "DetrImageProcessor"}, r"DetrImageProcessor[\s\S]*ViT"),
        ({"do_resize": True, "size": 224}, "'image_processor_type'"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0}, "'crop_pct'"),
        ({"input_size": [3, 45, 60]}, r"'crop_mode'[\s\S]*squash"),
        ({"input_size": [3, 45, 45], "crop_mode": "border"}, "'crop_mode'"),
        ({"input_size": [1, 28, 28]}, "'input_size'"),
        ({"input_size": [3, 45, 45], "interpolation": "random"}, "'interpolation'"),
        ({"input_size": [3, 45, 45], "crop_pct": 1e-300}, "'crop_pct'"),
        ({"input_size": [3, 45, 45], "brightness": 2}, "'brightness'"),
        (yolo(task="track"), "'task'"),
        (yolo(imgsz="__import__('os').system('true')"), "'imgsz'"),
        (yolo(imgsz="(" * 5000), "'imgsz'"),
        (yolo(imgsz="[" * 200000), "'imgsz'"),
        (yolo(channels="4"), "'channels'"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        contracts.parsed(values)


@pytest.mark.parametrize("text", ["[1]", "{", '{"size": ', "[" * 100000, "\udc80"])
def test_files_that_are_no_json_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "contract.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(EdgerunError, match="preprocessing contract"):
        contracts.read(path)
