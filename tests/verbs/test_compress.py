"""compress, as a verb and as a command: the same bytes every time, the whole story in the history, any kind of data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from edgerun.data import open_data
from edgerun.metrics import sqnr_db
from edgerun.mixed import mixed
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.verbs.compress import compress
from edgerun.verbs.load import load

X = np.random.default_rng(1).standard_normal((70, 6, 8, 8)).astype(np.float32)
TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[{batch},6,8,8] x) => (float[{batch},5] y) {{
    a = Conv<pads=[1,1,1,1]>(x, w1, b1) n = BatchNormalization(a, g, o, m, v) r = Relu(n)
    c = Conv(r, w2, b2) s = Clip(c, zero, six) h = GlobalAveragePool(s) f = Flatten(h)
    y = Gemm<transB=1>(f, w3, b3) }}"""


def network(path: Path, *, batch: str = "n", text: str = TEXT, **more: np.ndarray) -> Path:
    """A CNN from [batch, 6, 8, 8] to [batch, 5] with trained-like weights, as a file."""
    generator = np.random.default_rng(0)
    shapes = {"w1": (8, 6, 3, 3), "b1": (8,), "w2": (12, 8, 1, 1), "b2": (12,), "w3": (5, 12), "b3": (5,)}
    arrays = {n: generator.standard_normal(s) * np.sqrt(2 / np.prod(s[1:])) * 0.7 for n, s in shapes.items()}
    arrays |= {key: generator.uniform(0.5, 1.5, 8) for key in "gomv"} | {"zero": np.array(0.0), "six": np.array(6.0)}
    proto = onnx.parser.parse_model(text.format(batch=batch))
    used = {name for node in proto.graph.node for name in node.input}
    kept = {n: a.astype(np.float32) for n, a in arrays.items() if n in used} | more
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in kept.items())
    onnx.save(proto, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    np.savez(tmp_path / "calib.npz", x=X)
    return network(tmp_path / "float.onnx")


def outputs(path: Path, feeds: dict[str, np.ndarray], target: str = "onnxruntime") -> np.ndarray:
    with load(path, target, Options(1)) as session:
        return session.run(feeds)["y"]


def contents(folder: Path, stem: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"{stem}.*"))}


@pytest.mark.parametrize(("target", "name"), [("onnxruntime", "small.onnx"), ("openvino", "small.xml")])
def test_the_same_bytes_every_time(tmp_path: Path, model: Path, target: str, name: str) -> None:
    """Twice in this process and once in another one with another hash seed; the result loads and is close."""
    data = tmp_path / "calib.npz"
    result = compress(model, target=target, calibration=data, output=tmp_path / name)
    first = contents(tmp_path, "small")
    compress(model, target=target, calibration=data, output=tmp_path / name, force=True)
    assert contents(tmp_path, "small") == first
    command = [sys.executable, "-m", "edgerun", "compress", str(model), "-o", str(tmp_path / name), "--target", target]
    done = subprocess.run(
        [*command, "--calibration", str(data), "--force", "--json"],
        env={"PYTHONHASHSEED": "4711", "PATH": "", "HOME": str(tmp_path), "EDGERUN_PLACEMENT": "rules"},
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert contents(tmp_path, "small") == first
    told = json.loads(done.stdout)
    assert told["bytes"] == sum(map(len, first.values())) and told["bytes before"] == model.stat().st_size
    assert {k: told[k] for k in result.history[-1].options} == result.history[-1].options
    assert sqnr_db(outputs(model, {"x": X}), outputs(tmp_path / name, {"x": X}, target)) > 25


def test_the_history_tells_everything(tmp_path: Path, model: Path) -> None:
    output = tmp_path / "small.onnx"
    result = compress(model, calibration=tmp_path / "calib.npz", output=output, ranges="mse")
    read = Model.load(output)
    assert read.history == result.history and read.digest() == result.digest()
    (step,) = read.history
    assert step.name == "quantize/static_int8"
    assert step.before == Model.load(model).digest() and step.after == read.digest() != step.before
    assert step.data == mixed(open_data({"x": X}, read.inputs, batch=7)).digest
    told = step.options
    assert (told["scheme"], told["target"], told["ranges"], told["random data"]) == (
        "w8a8",
        "onnxruntime",
        "mse",
        False,
    )
    assert told["integer nodes"] == 3 and told["quantized activations"] >= 3
    assert told["calibration SQNR (dB)"] > 25
    json.loads(onnx.load(output).metadata_props[0].value, parse_constant=pytest.fail)


def test_a_second_step_keeps_the_first(model: Path, tmp_path: Path) -> None:
    from edgerun.model import Step

    original = Model.load(model).with_step(Step("converters/onnx", "0", {"opset": 17}, "", "abc"))
    result = compress(original, calibration={"x": X}, ranges="minmax")
    assert [step.name for step in result.history] == ["converters/onnx", "quantize/static_int8"]


def feeds_in_pieces() -> Iterator[dict[str, np.ndarray]]:
    """What `module:callable` may return: dicts of any number of samples."""
    for start in range(0, len(X), 9):
        yield {"x": X[start : start + 9]}


def as_npz(folder: Path) -> Any:
    np.savez_compressed(folder / "data.npz", x=X)
    return folder / "data.npz"


def as_folder(folder: Path) -> Any:
    (folder / "data").mkdir()
    for index, part in enumerate(np.split(X, 10)):
        np.save(folder / "data" / f"{index}.npy", part)
    return str(folder / "data")


def as_callable(folder: Path) -> Any:
    np.save(folder / "x.npy", X)
    code = "import numpy\ndef feeds():\n    x = numpy.load({!r})\n    return [{{'x': row}} for row in x]\n"
    (folder / "calibration_of_mine.py").write_text(code.format(str(folder / "x.npy")))
    return "calibration_of_mine:feeds"


@pytest.mark.parametrize("kind", [as_npz, as_folder, as_callable, lambda _: {"x": X}, lambda _: feeds_in_pieces])
def test_every_kind_of_data_gives_the_same_model(
    tmp_path: Path, model: Path, kind: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same samples in any form: the same bytes, but for nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "calibration_of_mine", raising=False)
    expected = compress(model, calibration=tmp_path / "calib.npz", ranges="minmax")
    found = compress(model, calibration=kind(tmp_path), ranges="minmax")
    assert found.to_bytes() == expected.to_bytes()


def test_pictures_through_the_contract(tmp_path: Path, cli: Any) -> None:
    """Pictures are calibration data once the model carries its contract, and are refused without."""
    from PIL import Image

    text = TEXT.replace("6,8,8]", "3,8,8]")
    path = network(tmp_path / "pictures.onnx", text=text, w1=np.full((8, 3, 3, 3), 0.1, np.float32))
    (tmp_path / "album").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (10, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "album" / f"{index}.png")
    refused = cli("compress", path, "-o", tmp_path / "small.onnx", "--calibration", tmp_path / "album")
    assert refused.code == 2 and "contract" in refused.err and not (tmp_path / "small.onnx").exists()
    proto = onnx.load(path)
    contract = {"size": [8, 8], "scale": 1 / 255, "mean": [0.5], "std": [0.25]}
    proto.metadata_props.add(key="edgerun.preprocessing", value=json.dumps(contract))
    onnx.save(proto, path)
    done = cli("compress", path, "-o", tmp_path / "small.onnx", "--calibration", tmp_path / "album")
    assert done.code == 0, done.err
    assert Model.load(tmp_path / "small.onnx").preprocessing == contract


def test_random_data_is_said_aloud(tmp_path: Path, model: Path, cli: Any) -> None:
    done = cli("compress", model, "-o", tmp_path / "small.onnx", "--calibration", "random:40", "--ranges", "minmax")
    assert done.code == 0 and "random noise" in done.err
    assert Model.load(tmp_path / "small.onnx").history[-1].options["random data"] is True


def test_the_printed_result(tmp_path: Path, model: Path, cli: Any) -> None:
    """Sizes, counts and decibels on stdout; on stderr what the data lacks, and that this net grew; no progress."""
    done = cli("compress", model, "-o", tmp_path / "small.onnx", "--calibration", tmp_path / "calib.npz")
    assert done.code == 0
    line, grew = done.err.splitlines()
    assert line.startswith("calibration data: 70 samples leave ranges open; about ")
    assert grew.startswith("warning: larger than the ")
    for words in ("small.onnx", "w8a8 for onnxruntime", "3 nodes on integers", "SQNR", "dB"):
        assert words in done.out


@pytest.mark.parametrize("batch", ["1", "5", "70"])
def test_a_fixed_batch(tmp_path: Path, batch: str) -> None:
    """Fed in the model's own batch; samples that do not fill one are left out."""
    path = network(tmp_path / "fixed.onnx", batch=batch)
    result = compress(path, calibration={"x": X}, ranges="minmax")
    assert result.inputs[0].shape == (int(batch), 6, 8, 8)
    feeds = {"x": X[: int(batch)]}
    result.save(tmp_path / "small.onnx")
    assert sqnr_db(outputs(path, feeds), outputs(tmp_path / "small.onnx", feeds)) > 25


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_integer_inputs(tmp_path: Path, target: str) -> None:
    """An embedding of token numbers and two dense layers, with sequences of different length."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (int64[n,t] x) => (float[n,t,5] y) {{
        e = Gather(table, x) a = MatMul(e, d1) c = Add(a, b1) r = Relu(c) y = MatMul(r, d2) }}"""
    generator = np.random.default_rng(3)
    table, d1, d2 = (generator.standard_normal(s).astype(np.float32) * 0.5 for s in ((50, 12), (12, 8), (8, 5)))
    path = network(tmp_path / "tokens.onnx", text=text, table=table, d1=d1, d2=d2)
    feeds = [{"x": generator.integers(0, 50, (4, length))} for length in (3, 7, 7, 2)]
    output = tmp_path / ("small.onnx" if target == "onnxruntime" else "small.xml")
    result = compress(path, target=target, calibration=feeds, output=output, ranges="minmax")
    assert result.history[-1].options["integer nodes"] == 2
    assert sqnr_db(outputs(path, feeds[1]), outputs(output, feeds[1], target)) > 25


def test_limit_uses_that_many_samples(model: Path) -> None:
    """Drawn ones, as many."""
    limited = compress(model, calibration={"x": X}, limit=40, ranges="minmax").history[-1]
    drawn = mixed(open_data({"x": X}, Model.load(model).inputs)).first(40)
    assert limited.data == drawn.digest and limited.options["calibration"]["samples"] == 40


@pytest.mark.parametrize("preset", ["fast", "default"])
def test_constant_calibration_is_refused(tmp_path: Path, model: Path, cli: Any, preset: str) -> None:
    """Exit 2 and no file, for one sample over and over and for zeros, also where not all of it would be looked at."""
    for rows, words in ((np.repeat(X[:1], 50, axis=0), "the same sample"), (np.zeros_like(X[:50]), "constant")):
        np.savez(tmp_path / "still.npz", x=rows)
        options = ("--calibration", tmp_path / "still.npz", "--preset", preset)
        done = cli("compress", model, "-o", tmp_path / "small.onnx", *options)
        assert done.code == 2 and words in done.err and not (tmp_path / "small.onnx").exists()


def test_duplicates_and_few_samples_are_told(tmp_path: Path, model: Path, cli: Any) -> None:
    """On stderr, in the result and in the file's history; the answer stays yes."""
    np.savez(tmp_path / "few.npz", x=np.concatenate([X[:9], X[2:5]]))
    command = ("compress", model, "-o", tmp_path / "small.onnx", "--calibration", tmp_path / "few.npz", "--json")
    done = cli(*command, "--ranges", "minmax")
    assert done.code == 0
    assert "3 of 12 calibration samples repeat" in done.err and "9 different calibration samples are few" in done.err
    told = json.loads(done.out)["calibration"]
    assert (told["samples"], told["duplicates"], len(told["warnings"])) == (12, 3, 2)
    assert Model.load(tmp_path / "small.onnx").history[-1].options["calibration"] == told


PEAK = """
import resource, sys
import numpy
from edgerun.verbs.compress import compress

def feeds():
    generator = numpy.random.default_rng(0)
    for _ in range(int(sys.argv[2]) // 8):
        yield {"x": generator.standard_normal((8, 6, 32, 32)).astype(numpy.float32)}

compress(sys.argv[1], calibration=feeds, ranges="minmax")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """64 and 1,024 samples: peaks within 12 MiB. The inputs of the latter alone are 24 MiB, an activation 32 MiB."""
    model = network(tmp_path / "float.onnx", text=TEXT.replace("6,8,8]", "6,32,32]"))
    peaks = []
    for samples in (64, 1024):
        command = [sys.executable, "-c", PEAK, str(model), str(samples)]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert abs(peaks[1] - peaks[0]) < 12, peaks


def test_weights_beside_the_model(tmp_path: Path, model: Path) -> None:
    """External data is named relative to the model, not to where the command runs; the result needs it no more."""
    expected = compress(model, calibration={"x": X}, ranges="minmax").to_bytes()
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "m.onnx"
    onnx.save(onnx.load(model), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    assert compress(path, calibration={"x": X}, ranges="minmax").to_bytes() == expected


def test_the_default_domain_by_its_long_name(tmp_path: Path, model: Path) -> None:
    proto = onnx.load(model)
    proto.opset_import[0].domain = "ai.onnx"
    onnx.save(proto, tmp_path / "long.onnx")
    result = compress(tmp_path / "long.onnx", calibration={"x": X}, ranges="minmax")
    assert result.history[-1].options["integer nodes"] == 3


@pytest.mark.parametrize("scheme", ["w8a8_dynamic", "w8a16", "w4a16_b32", "fp16"])
def test_schemes_on_the_command_line(tmp_path: Path, cli: Callable[..., Any], scheme: str) -> None:
    """Without data, and with data: then the loss is told. w8a8 without data is misuse."""
    wide = np.random.default_rng(0).standard_normal((6 * 8 * 8, 40)).astype(np.float32)
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[n,6,8,8] x) => (float[n,40] y) {{
        f = Flatten(x) y = MatMul(f, wide) }}"""
    model, output = network(tmp_path / "wide.onnx", text=text, wide=wide), tmp_path / "small.onnx"
    np.savez(tmp_path / "calib.npz", x=X)
    ran = cli("compress", model, "-o", output, "--scheme", scheme)
    assert ran.code == 0 and f"{scheme} for onnxruntime" in ran.out and "SQNR" not in ran.out
    assert output.stat().st_size < 0.6 * model.stat().st_size
    ran = cli("compress", model, "-o", output, "--scheme", scheme, "--calibration", tmp_path / "calib.npz", "--force")
    assert ran.code == 0 and "SQNR" in ran.out
    assert cli("compress", model, "-o", tmp_path / "other.onnx").code == 2
