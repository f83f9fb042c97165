"""The command that `edgerun why-wrong` tells, where only float helps: it runs, and brings what was told."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.verbs.why_wrong import why_wrong

HEAD = """<ir_version: 8, opset_import: ["": 17]> net (float[n,3,8,8] x) => (float[n,10] y) {
  c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)  r1 = Relu(c1)
  c2 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r1, w2, b2)  r2 = Relu(c2)
  pool = GlobalAveragePool(r2)  flat = Flatten(pool)  y = Gemm(flat, w3, b3)
}"""
PAIRS = """<ir_version: 8, opset_import: ["": 17]> net (float[n,32,4,4] x) => (float[n,6,4,4] f) {
  a = Conv(x, wa)  b = Conv(a, wb)  br = Relu(b)  c = Conv(br, wc)  cr = Relu(c)  d = Conv(cr, wd)  dr = Relu(d)
  e = Conv(dr, we)  er = Relu(e)  f = Conv(er, wf)
}"""


def save(path: Path, text: str, **arrays: np.ndarray) -> Path:
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = node.output[0]
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    onnx.save(proto, path)
    return path


def patches(seed: int, count: int) -> np.ndarray:
    """Pictures `[count, 3, 8, 8]` of patches of 3 by 3."""
    small = np.random.default_rng(seed).standard_normal((count, 3, 3, 3)).astype(np.float32)
    return np.ascontiguousarray(np.repeat(np.repeat(small, 3, 2), 3, 3)[:, :, :8, :8])


def classifier(path: Path) -> Path:
    """Two convolutions and the usual head."""
    draw = np.random.default_rng(0)
    w1, w2, w3 = (draw.standard_normal(shape) for shape in ((8, 3, 3, 3), (16, 8, 3, 3), (16, 10)))
    biases = {"b1": np.full(8, 0.1), "b2": np.zeros(16), "b3": np.zeros(10)}
    return save(path, HEAD, w1=0.3 * w1, w2=0.15 * w2, w3=0.5 * w3, **biases)


def ran(model: Path, data: Path, target: str, cli: Any) -> tuple[Any, Path]:
    """What was found of the model that is made for a target, and the model that the told command makes."""
    small, out = model.parent / "small.onnx", model.parent / "out.onnx"
    edgerun.compress(model, target=target, calibration=data, output=small)
    found = why_wrong(model, small, data)
    assert found.command is not None and found.command in cli("why-wrong", model, small, "--data", data).out
    words = shlex.split(found.command)
    assert words[:2] == ["edgerun", "compress"] and words[-2:] == ["-o", "OUT.onnx"]
    done = cli(*words[1:-1], out)
    assert done.code == 0, done.err
    return found, out


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_behind_what_moves_data_the_layer_is_named(tmp_path: Path, target: str, cli: Any) -> None:
    """Flatten reads what is rounded, and is never quantized: it is the Gemm behind that is to stay in float."""
    model, data = classifier(tmp_path / "float.onnx"), tmp_path / "data.npz"
    np.savez(data, x=patches(1, 400))
    found, out = ran(model, data, target, cli)
    assert found.keep_float == ("y",) and found.unfixed is not None and "nothing quantized" not in found.unfixed
    kept = onnx.load(out).graph.node
    assert any(node.op_type == "QuantizeLinear" for node in kept), "the rest stays on integers"
    before, after = (edgerun.compare(model, path, data).outputs[0].sqnr_db for path in (tmp_path / "small.onnx", out))
    assert found.keep_float_gain_db.value == pytest.approx(after - before, abs=3) and after > before + 2


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_what_rounds_its_result_whoever_reads_it_stays_in_float_too(tmp_path: Path, target: str, cli: Any) -> None:
    """`b` subtracts channels of `a` that hardly differ. ONNX Runtime has no integer Conv that writes float."""
    draw = np.random.default_rng(4)
    first, second = np.repeat(draw.standard_normal((8, 32)), 2, axis=0), np.zeros((16, 16))
    first[1::2] += 0.7 * draw.standard_normal((8, 32))
    for row in range(16):
        second[row, 2 * (row % 8) : 2 * (row % 8) + 2] = (5, -5) if row < 8 else (-5, 5)
    rest = {f"w{name}": draw.standard_normal((6 if name == "f" else 16, 16)) / 4 for name in "cdef"}
    arrays = {"wa": first, "wb": second, **rest}
    model = save(tmp_path / "float.onnx", PAIRS, **{name: array[..., None, None] for name, array in arrays.items()})
    data = tmp_path / "data.npz"
    np.savez(data, x=draw.standard_normal((128, 32, 4, 4)).astype(np.float32))
    found, out = ran(model, data, target, cli)
    assert "b" in found.keep_float and ("a" in found.keep_float or target == "openvino")
    new = {"x": draw.standard_normal((256, 32, 4, 4)).astype(np.float32)}
    before, after = (edgerun.compare(model, path, new).outputs[0].sqnr_db for path in (tmp_path / "small.onnx", out))
    assert found.keep_float_gain_db.value == pytest.approx(after - before, abs=2) and after > before + 3


def test_the_command_says_how_pictures_are_prepared(tmp_path: Path, cli: Any) -> None:
    """As why-wrong was told, with the device that the model was made for."""
    from PIL import Image

    model, small = classifier(tmp_path / "float.onnx"), tmp_path / "small.onnx"
    folder, contract = tmp_path / "pictures", tmp_path / "contract.json"
    folder.mkdir()
    for number, picture in enumerate(patches(1, 64)):
        pixels = np.clip(128 + 40 * picture.transpose(1, 2, 0), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    contract.write_text('{"size": [8, 8], "scale": 0.025, "mean": [3.2], "std": [1.0]}')
    edgerun.compress(model, calibration=folder, preprocessing=contract, device="xeon-avx512-vnni", output=small)
    found = why_wrong(model, small, folder, preprocessing=contract)
    assert found.command is not None
    assert f"--preprocessing={contract}" in found.command and "--device=xeon-avx512-vnni" in found.command
    words = shlex.split(found.command)
    assert cli(*words[1:-1], tmp_path / "out.onnx").code == 0
