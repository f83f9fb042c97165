"""Pictures through a model's contracts, from the file to the answers, on every target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgerun
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.postprocess import Postprocessing

ZOO = Path(os.environ.get("EDGERUN_ZOO", ".cache/zoo"))
YOLO = {"task": "detect", "imgsz": "[64, 64]", "stride": "32", "names": "{0: 'red', 1: 'green', 2: 'blue'}"}
BOXES = np.array([[20, 22, 50], [32, 32, 40], [20, 20, 10], [10, 10, 30]], np.float32)  # cx cy w h of three
RESIZE = {"size": [8, 8], "scale": 1 / 255}
FLOAT = TensorProto.FLOAT


def saved(
    path: Path, nodes: list[Any], size: int, shape: list[Any], weights: dict[str, np.ndarray], batch: Any
) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [value("images", FLOAT, [batch, 3, size, size])], [value("y", FLOAT, [batch, *shape])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def detector(path: Path, batch: Any = "n", **metadata: str) -> Path:
    """y [n, 4 + 3, 3]: three boxes, of which the first two overlap by 9/11; their score for a class is that colour's
    mean times 0.9, 0.8 and 0.7."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["p"]),
        helper.make_node("Reshape", ["p", "column"], ["m"]),
        helper.make_node("Mul", ["m", "shares"], ["scores"]),
        helper.make_node("ReduceSum", ["m", "axes"], ["sum"]),
        helper.make_node("Mul", ["sum", "zero"], ["none"]),
        helper.make_node("Add", ["none", "boxes"], ["placed"]),
        helper.make_node("Concat", ["placed", "scores"], ["y"], axis=1),
    ]
    weights = {
        "column": np.array([0, 3, 1]), "axes": np.array([1]), "zero": np.zeros(1, np.float32), "boxes": BOXES[None],
        "shares": np.array([[[0.9, 0.8, 0.7]]], np.float32),
    }  # fmt: skip
    saved(path, nodes, 64, [7, 3], weights, batch)
    model = onnx.load(path)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def classifier(path: Path) -> Path:
    """y [n, 3]: four times the mean of each colour, through a Conv that gives its input back."""
    eye = np.zeros((3, 3, 1, 1), np.float32)
    eye[range(3), range(3)] = 4
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    return saved(path, nodes, 8, [3], {"w": eye}, "n")


def painted(folder: Path, **colours: tuple[int, int, int]) -> Path:
    """Pictures of one colour, 40 high and 80 wide."""
    folder.mkdir(exist_ok=True)
    for name, colour in colours.items():
        Image.fromarray(np.full((40, 80, 3), colour, np.uint8)).save(folder / f"{name}.png")
    return folder


def written(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


def test_an_ultralytics_export_answers_by_itself(tmp_path: Path, cli: Any) -> None:
    """By hand: a red picture covers rows 16..48 of 64, the others are grey 114. IoU of the first two boxes is 180/220:
    above 0.7, so the second goes. x is divided by 0.8; y less 16 first."""
    model = detector(tmp_path / "yolo.onnx", **YOLO)
    red, grey = (painted(tmp_path / "p", red=(255, 0, 0)) / "red.png"), 114 / 255
    ran = cli("run", model, "--data", red, "--json")
    assert ran.code == 0
    (rows,) = json.loads(ran.out).values()
    mean = (1 + grey) / 2
    assert [row["score"] for row in rows] == pytest.approx([0.9 * mean, 0.7 * mean], abs=1e-3)
    assert [(row["index"], row["label"]) for row in rows] == [(0, "red")] * 2
    assert rows[0]["box"] == pytest.approx([12.5, 13.75, 37.5, 26.25], abs=1e-4)
    assert rows[1]["box"] == pytest.approx([56.25, 11.25, 68.75, 40], abs=1e-4), "cut at the picture's edge"
    shown = cli("run", model, "--data", red)
    assert "red.png:\n" in shown.out and "red  at 12.5 13.8 37.5 26.2" in shown.out


def test_batches_of_a_fixed_size_are_filled(tmp_path: Path) -> None:
    """Three pictures on a model of two: each has the answers that it has alone."""
    folder = painted(tmp_path / "p", a=(255, 0, 0), b=(0, 255, 0), c=(0, 0, 255))
    pairs = edgerun.predict(detector(tmp_path / "two.onnx", 2, **YOLO), folder)
    alone = edgerun.predict(detector(tmp_path / "n.onnx", "n", **YOLO), folder)
    assert [found.labels[0] for found in pairs.values()] == ["red", "green", "blue"]
    assert {k: v.to_json() for k, v in pairs.items()} == {k: v.to_json() for k, v in alone.items()}


def test_the_contract_goes_along(tmp_path: Path, cli: Any) -> None:
    """convert, compress and compile, to all kinds of files; the answers are those of the first."""
    folder = painted(tmp_path / "p", red=(255, 0, 0), blue=(0, 0, 255))
    config = {"architectures": ["ViTForImageClassification"], "id2label": {"0": "red", "1": "green", "2": "blue"}}
    before, after = written(tmp_path / "pre.json", RESIZE), written(tmp_path / "config.json", config)
    converted = tmp_path / "converted.onnx"
    ran = cli("convert", classifier(tmp_path / "net.onnx"), "-o", converted, "--preprocessing", before,
              "--postprocessing", after)  # fmt: skip
    assert ran.code == 0 and '"activation": "softmax"' in ran.out
    assert '"labels": ["red", "green", "blue"]' in cli("inspect", converted).out
    assert json.loads(cli("inspect", converted, "--json").out)["postprocessing"]["kind"] == "classes"
    wanted = edgerun.predict(converted, folder)
    exact = [float(np.exp(4) / (np.exp(4) + 2)), float(1 / (np.exp(4) + 2))]
    for picture, colour in zip(wanted, ("blue", "red"), strict=True):
        assert wanted[picture].labels[0] == colour
        assert wanted[picture].scores[:2] == pytest.approx(exact, abs=1e-5)
    data = tmp_path / "calibration.npz"
    np.savez(data, images=np.random.default_rng(0).random((20, 3, 8, 8), dtype=np.float32))
    small, ir, ort = tmp_path / "small.onnx", tmp_path / "small.xml", tmp_path / "net.ort"
    assert cli("compress", converted, "-o", small, "--calibration", data).code == 0
    assert cli("compile", converted, "-o", ir, "--target", "openvino").code == 0
    assert cli("compile", converted, "-o", ort).code == 0
    bytes_ = tmp_path / "bytes.onnx"
    edgerun.convert(converted, output=bytes_, fold_preprocessing=True)
    for file in (small, ir, ort, bytes_):
        found = edgerun.predict(file, folder)
        for picture, prediction in found.items():
            assert prediction.labels == wanted[picture].labels or file == small
            assert prediction.labels[0] == wanted[picture].labels[0], file
            assert prediction.scores[0] == pytest.approx(wanted[picture].scores[0], abs=0.01), file
    engine = edgerun.compile(Model.load(converted), "openvino")
    with edgerun.load(converted, isolated=True) as session, edgerun.load(converted, "reference") as reference:
        for running in (session, reference, engine):
            got = {k: v.to_json() for k, v in edgerun.predict(running, folder).items()}
            for picture, prediction in wanted.items():
                assert [row["label"] for row in got[picture]] == list(prediction.labels)
                assert [row["score"] for row in got[picture]] == pytest.approx(prediction.scores, abs=1e-5)


def test_arrays_are_pictures_too(tmp_path: Path) -> None:
    red = np.full((40, 80, 3), (255, 0, 0), np.uint8)
    model = detector(tmp_path / "yolo.onnx", **YOLO)
    assert [found.labels[0] for found in edgerun.predict(model, [red, red[..., ::-1]]).values()] == ["red", "blue"]
    assert list(edgerun.predict(model, red)) == ["0"]


def test_a_contract_given_goes_before_that_of_the_file(tmp_path: Path, cli: Any) -> None:
    red = painted(tmp_path / "p", red=(255, 0, 0)) / "red.png"
    model = detector(tmp_path / "yolo.onnx", **YOLO)
    contract = Postprocessing("boxes", format="xywh_classes", threshold=0.55, iou=0.9)
    assert len(edgerun.predict(model, red, postprocessing=contract)[str(red)].labels) == 2
    file = written(tmp_path / "own.json", {**contract.to_json(), "threshold": 0.99})
    assert cli("run", model, "--data", red, "--postprocessing", file).out == f"{red}: nothing above the threshold\n"


def test_what_is_missing_is_said(tmp_path: Path, cli: Any) -> None:
    net, red = classifier(tmp_path / "net.onnx"), painted(tmp_path / "p", red=(255, 0, 0)) / "red.png"
    before = written(tmp_path / "pre.json", RESIZE)
    assert "no preprocessing contract" in cli("run", net, "--data", red).err
    ran = cli("run", net, "--data", red, "--preprocessing", before)
    assert ran.code == 2 and "no post-processing contract" in ran.err and "--postprocessing FILE" in ran.err
    bad = written(tmp_path / "bad.json", {"kind": "boxes", "format": "xywh_classes"})
    ran = cli("run", net, "--data", red, "--preprocessing", before, "--postprocessing", bad)
    assert ran.code == 2 and "wanted: [n, 4 + classes, boxes]" in ran.err
    ran = cli("convert", net, "-o", tmp_path / "c.onnx", "--postprocessing", bad)
    assert ran.code == 2 and "wanted: [n, 4 + classes, boxes]" in ran.err and not (tmp_path / "c.onnx").exists()
    good = written(tmp_path / "good.json", {"kind": "classes"})
    ran = cli("run", net, "--data", tmp_path / "none.png", "--preprocessing", before, "--postprocessing", good)
    assert ran.code == 2 and "no such picture" in ran.err
    for words in (["--feeds", "x.npz"], ["--data", red, "-o", "y.npz"], ["--data", red, "--feeds", "x.npz"],
                  ["--feeds", "x.npz", "-o", "y.npz", "--postprocessing", bad], []):  # fmt: skip
        assert cli("run", net, *words).code == 2


def test_metadata_that_does_not_fit_is_left_out(tmp_path: Path, cli: Any) -> None:
    """A segmentation model's boxes carry coefficients of masks: no contract, with the reason."""
    model = detector(tmp_path / "yolo.onnx", **{**YOLO, "task": "segment"})
    ran = cli("convert", model, "-o", tmp_path / "c.onnx")
    assert ran.code == 0 and "post-processing contract in the metadata is left out" in ran.err
    assert Model.load(tmp_path / "c.onnx").postprocessing is None
    damaged = detector(tmp_path / "d.onnx", **YOLO, **{"edgerun.postprocessing": "[1"})
    with pytest.raises(EdgerunError, match="damaged"):
        edgerun.predict(damaged, np.zeros((4, 4, 3), np.uint8))


@pytest.mark.zoo
def test_a_real_detector_against_loops(tmp_path: Path) -> None:
    """NudeNet, a YOLOv8, on its calibration pictures: what `run --data` says against decoding by loops."""
    place = ZOO / "models" / "nudenet"
    if not (place / "source.onnx").exists():
        pytest.skip("needs the zoo's nudenet: make zoo")
    with np.load(place / "calibration.npz") as stored:
        samples = stored["images"][:8]
    heights = [320, 280, 240, 200, 160, 320, 320, 320]
    whole = np.rint(samples.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    pictures = [picture[:height] for picture, height in zip(whole, heights, strict=True)]
    contract = Postprocessing("boxes", format="xywh_classes", threshold=0.05, iou=0.45, most=20)
    found = edgerun.predict(place / "source.onnx", pictures, postprocessing=contract)
    assert sum(len(prediction.labels) for prediction in found.values()) >= 5, "there is something to compare"
    with edgerun.load(place / "source.onnx") as session:
        for picture, prediction in zip(pictures, found.values(), strict=True):
            height = len(picture)
            framed = np.full((320, 320, 3), 114, np.uint8)
            top = (320 - height) // 2
            framed[top : top + height] = picture
            feed = (framed.transpose(2, 0, 1)[None] / 255).astype(np.float32)
            (raw,) = session.run({"images": feed})["output0"]
            rows = []
            for x, y, w, h, *scores in raw.T.tolist():
                best = max(scores)
                if best >= 0.05:
                    rows.append((best, scores.index(best), [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
            kept: list[tuple[float, int, list[float]]] = []
            for row in sorted(rows, key=lambda row: -row[0]):
                if all(row[1] != other[1] or _iou(row[2], other[2]) <= 0.45 for other in kept):
                    kept.append(row)
            kept = kept[:20]
            assert prediction.indices.tolist() == [row[1] for row in kept]
            assert prediction.scores == pytest.approx([row[0] for row in kept], abs=1e-6)
            boxes = [[min(max(v - (top if i % 2 else 0), 0), height if i % 2 else 320) for i, v in enumerate(row[2])]
                     for row in kept]  # fmt: skip
            assert prediction.boxes == pytest.approx(np.array(boxes).reshape(-1, 4), abs=1e-3)


def _iou(a: list[float], b: list[float]) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
