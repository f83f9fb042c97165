"""compress --max-drop: what is kept in float, what is proven about the drop, and what is refused.

One layer is planted to be lost in INT8: every row of its weights has one huge entry for an input that is always zero,
so the row's scale leaves nothing of the others. The float model does not see it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.data import open_data
from edgerun.mixed import mixed
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.verbs.compress import compress
from edgerun.verbs.looks import Looks

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[{batch},48] x) => (float[{batch},5] y) {{
    a = Gemm(x, wa, ba) r = Relu(a) b = Gemm(r, wb, bb) s = Relu(b) y = Gemm(s, wc, bc) }}"""
OUTLIER = 600.0


def samples(seed: int, n: int) -> np.ndarray:
    """float32 [n, 48]; input 0 is always zero."""
    x = np.random.default_rng(seed).standard_normal((n, 48)).astype(np.float32)
    x[:, 0] = 0
    return x


def network(path: Path, *, outlier: float = OUTLIER, batch: str = "n") -> Path:
    """x [batch, 48] -> y [batch, 5] through Gemm `a`, `b`, `y`; the planted entry of `a` is `outlier`."""
    generator = np.random.default_rng(5)
    shapes = {"wa": (48, 24), "ba": (24,), "wb": (24, 24), "bb": (24,), "wc": (24, 5), "bc": (5,)}
    arrays = {name: generator.standard_normal(shape).astype(np.float32) * 0.4 for name, shape in shapes.items()}
    arrays["wa"][0] = outlier
    proto = onnx.parser.parse_model(TEXT.format(batch=batch))
    for node in proto.graph.node:
        node.name = node.output[0]
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(proto, path)
    return path


def labelled(path: Path, model: Path, n: int, seed: int = 2) -> Path:
    """`n` samples sorted by class, with what the float model says as labels, but for every tenth."""
    x = samples(seed, n)
    with edgerun.load(model, "onnxruntime", Options(1)) as session:
        labels = session.run({"x": x[: len(x)]})["y"].argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % 5
    order = np.argsort(labels, kind="stable")
    np.savez(path, x=x[order], labels=labels[order])
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    np.savez(tmp_path / "calib.npz", x=samples(1, 64))
    return network(tmp_path / "float.onnx")


def command(folder: Path, drop: str = "4", data: str = "dev.npz", output: str = "small.onnx") -> tuple[Any, ...]:
    return (
        "compress", folder / "float.onnx", "-o", folder / output, "--calibration", folder / "calib.npz",
        "--ranges", "minmax", "--max-drop", drop, "--labelled", folder / data,
    )  # fmt: skip


@pytest.mark.parametrize(("target", "name"), [("onnxruntime", "small.onnx"), ("openvino", "small.xml")])
def test_the_lost_layer_stays_in_float(tmp_path: Path, model: Path, cli: Any, target: str, name: str) -> None:
    dev = labelled(tmp_path / "dev.npz", model, 3000)
    ran = cli(*command(tmp_path, output=name), "--target", target, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)["max drop"]
    assert list(told["kept float"]) == ["a"] and told["layers"] == 3 and told["samples"] == 3000
    assert told["kept float"]["a"] == pytest.approx(48 / 77, abs=1e-3)  # 48*24 of 48*24 + 24*24 + 24*5 products
    first, *_, last = told["trials"]
    # All on integers, hopeless at the first look: an eighth of the data, in whole batches.
    assert first["kept"] == 0 and first["answer"] == "given up" and first["samples"] <= 375
    assert last["kept"] == 1 and last["answer"] == "yes" and last["samples"] == 3000
    assert told["interval (points, 95 %)"][1] < 4
    # eval on the same data says the same, and fresh data agrees.
    files = (tmp_path / name, "--baseline", f"{model}@{target}", "--max-drop", "4", "--json")
    on_dev = cli("eval", *files, "--data", dev)
    assert on_dev.code == 0
    found = json.loads(on_dev.out)["against"]
    assert 100 * found["drop"] == pytest.approx(told["drop (points)"], abs=1e-3)
    assert (found["lost"], found["gained"]) == (last["lost"], last["gained"])
    assert cli("eval", *files, "--data", labelled(tmp_path / "fresh.npz", model, 3000, seed=9)).code == 0


def test_a_harmless_model_is_as_without_the_bound(tmp_path: Path, cli: Any) -> None:
    path = network(tmp_path / "float.onnx", outlier=0.5)
    np.savez(tmp_path / "calib.npz", x=samples(1, 640))  # enough that fresh samples are hardly clipped
    labelled(tmp_path / "dev.npz", path, 2000)
    ran = cli(*command(tmp_path, "3%"))
    assert ran.code == 0 and "0 of 3 layers kept in float" in ran.out and "surely below 3" in ran.out
    plain = compress(path, calibration=tmp_path / "calib.npz", ranges="minmax")
    held = Model.load(tmp_path / "small.onnx")
    assert held.digest() == plain.digest()
    (step,) = held.history
    record = step.options["max drop"]
    assert record["samples run"] == 2000 and len(record["trials"]) == 1
    assert record["labelled data"] == mixed(open_data(tmp_path / "dev.npz", held.inputs)).digest


def test_what_the_user_keeps_is_kept_too(tmp_path: Path, model: Path) -> None:
    labelled(tmp_path / "dev.npz", model, 3000)
    result = compress(
        model, calibration=tmp_path / "calib.npz", ranges="minmax", keep_float=["b"],
        max_drop=4, labelled=tmp_path / "dev.npz",
    )  # fmt: skip
    record = result.history[-1].options["max drop"]
    assert list(record["kept float"]) == ["a"] and record["layers"] == 2
    assert result.history[-1].options["integer nodes"] == 1


def test_a_fixed_batch(tmp_path: Path) -> None:
    path = network(tmp_path / "float.onnx", batch="7")
    free = network(tmp_path / "free.onnx")
    labelled(tmp_path / "dev.npz", free, 2000)
    result = compress(path, calibration={"x": samples(1, 70)}, ranges="minmax", max_drop=4,
                      labelled=tmp_path / "dev.npz")  # fmt: skip
    record = result.history[-1].options["max drop"]
    assert list(record["kept float"]) == ["a"] and record["samples"] == 1995


SPEECH = """<ir_version: 8, opset_import: ["": 17]> net (float[n,12,16] x) => (float[n,5] y) {
    t = Transpose<perm=[1,0,2]>(x) s0 = LSTM<hidden_size=24>(t, w0, r0) q0 = Squeeze(s0, one)
    s1, h1 = LSTM<hidden_size=24>(q0, w1, r1) f = Squeeze(h1, zero) y = Gemm(f, wh, bh) }"""


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic"])
def test_a_recurrent_layer_whose_input_bears_no_grid_stays_in_float(scheme: str) -> None:
    """One channel is a thousand times as loud as what the others tell. The logits' common part hides that in dB."""
    generator = np.random.default_rng(3)
    shapes = {"w0": (1, 96, 16), "r0": (1, 96, 24), "w1": (1, 96, 24), "r1": (1, 96, 24), "wh": (24, 5)}
    arrays = {name: generator.standard_normal(shape).astype(np.float32) / 5 for name, shape in shapes.items()}
    arrays["w0"][..., 0] /= 1000
    arrays |= {"wh": 5 * arrays["wh"], "bh": np.full(5, 60, np.float32), "one": np.array([1]), "zero": np.array([0])}
    proto = onnx.parser.parse_model(SPEECH)
    for node, name in zip(proto.graph.node, ("t", "first", "q", "second", "f", "head"), strict=True):
        node.name = name
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = Model.from_proto(proto)

    def spoken(seed: int, n: int) -> np.ndarray:
        x = 0.3 * np.cumsum(np.random.default_rng(seed).standard_normal((n, 12, 16)), 1)
        x[..., 0] = 1000 * np.abs(x[..., 0])
        return x.astype(np.float32)

    dev = {"x": spoken(2, 2000)}
    with edgerun.load(edgerun.compile(model, "onnxruntime", Options(1)), "onnxruntime") as session:
        dev["labels"] = session.run(dev)["y"].argmax(axis=1)
    result = compress(model, scheme=scheme, calibration={"x": spoken(1, 64)}, placement="rules", max_drop=4,
                      labelled=dev)  # fmt: skip
    told = result.history[-1].options
    assert list(told["max drop"]["kept float"]) == ["first"] and told["max drop"]["trials"][0]["answer"] == "given up"
    kinds = {str(node.name): node.op_type for node in result.ir.graph}
    assert kinds["first"] == "LSTM" and kinds["second"] == "DynamicQuantizeLSTM"


def test_too_little_data_says_how_much(tmp_path: Path, model: Path, cli: Any) -> None:
    labelled(tmp_path / "dev.npz", model, 90)
    ran = cli(*command(tmp_path))
    assert ran.code == 1 and "too little labelled data" in ran.err and "93 at least" in ran.err  # 1.96² · 0.96 / 0.04
    labelled(tmp_path / "dev.npz", model, 98)
    ran = cli(*command(tmp_path))
    assert ran.code == 1 and "needs about" in ran.err and "labelled samples" in ran.err
    needed = int(ran.err.split("needs about ")[1].split()[0])
    assert 98 < needed < 20_000
    assert not (tmp_path / "small.onnx").exists() and ran.out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--max-drop", "2"), "belong together"),
        (("--labelled", "dev.npz"), "belong together"),
        (("--max-drop", "much", "--labelled", "dev.npz"), "'much' is no number of points"),
        (("--max-drop", "0", "--labelled", "dev.npz"), "out of range"),
        (("--max-drop", "2", "--labelled", "bare.npz"), "has no labels"),
        (("--max-drop", "2", "--labelled", "same.npz"), "is the calibration data"),
        (("--max-drop", "2", "--labelled", "nope.npz"), "does not exist"),
        (("--max-drop", "2", "--labelled", "dev.npz", "--logits", "z"), "there is no output 'z'"),
    ],
)
def test_misuse(
    tmp_path: Path, model: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, change: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    labelled(Path("dev.npz"), model, 300)
    np.savez("bare.npz", x=samples(3, 300))
    np.savez("same.npz", x=samples(1, 64), labels=np.zeros(64, np.int64))
    plain = ("compress", model, "-o", "small.onnx", "--calibration", "calib.npz", "--ranges", "minmax")
    ran = cli(*plain, *change)
    assert ran.code == 2 and message in ran.err and not Path("small.onnx").exists()


def test_every_sample_is_in_one_look(tmp_path: Path, model: Path) -> None:
    """Sorted labels, looks of growing size: each holds all classes, together all samples once."""
    dev = labelled(tmp_path / "dev.npz", model, 1003)
    looks = Looks(open_data(dev, Model.load(model).inputs, batch=10))
    assert list(looks.ends) == [250, 500, 1003]
    with edgerun.load(model, "onnxruntime", Options(1)) as session:
        parts = [looks.scores(session, look) for look in range(3)]
    assert [len(part) for part in parts] == [250, 250, 503]
    assert sum(int(part.sum()) for part in parts) == 1003 - 101
    assert all(abs(part.mean() - 0.9) < 0.06 for part in parts)
