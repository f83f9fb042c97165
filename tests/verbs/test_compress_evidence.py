"""What `compress` says of its data and of what is left: how many samples, how sure, and what is far off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.stats import t  # type: ignore[import-untyped]

import edgerun
from edgerun import metrics
from edgerun.mixed import order
from edgerun.quantize import _reached
from edgerun.verbs.compress import compress

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,32] x) => (float[n,24] y{more}) {{
    h = Gemm(x, w) r = Relu(h) z = Gemm(r, v){ends} }}"""
LINEAR, SIGMOID = " y = Identity(z)", " s = Sigmoid(z) y = Reshape(s, shape)"
X = np.random.default_rng(0).standard_exponential((300, 32)).astype(np.float32)


def network(path: Path, ends: str = LINEAR, more: str = "", scale: float = 1.0, shift: float = 0.0) -> Path:
    generator = np.random.default_rng(1)
    proto = onnx.parser.parse_model(TEXT.format(more=more, ends=ends).replace("Gemm(r, v)", "Gemm(r, v, b)"))
    arrays = {"w": generator.standard_normal((32, 64)), "v": scale * generator.standard_normal((64, 24)) / 30,
              "b": np.full(24, shift)}  # fmt: skip
    stored = {name: array.astype(np.float32) for name, array in arrays.items()} | {"shape": np.array([-1, 24])}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    onnx.save(proto, path)
    return path


def ran(cli: Any, model: Path, x: np.ndarray, *options: str) -> Any:
    np.savez(model.with_name("c.npz"), x=x)
    words = ("compress", model, "-o", model.with_name("o.onnx"), "--force", "--calibration", model.with_name("c.npz"))
    return cli(*words, "--ranges", "minmax", *options)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_the_sqnr_has_its_n_and_its_interval(tmp_path: Path, cli: Any, scheme: str) -> None:
    """The value is that of the written model on the first samples; the interval is the jackknife's, by hand."""
    model = network(tmp_path / "m.onnx")
    ways = () if scheme == "w8a8" else ("--scheme", scheme)
    np.savez(tmp_path / "c.npz", x=X[:16])
    words = ("compress", model, "-o", tmp_path / "o.onnx", "--force", "--calibration", tmp_path / "c.npz", *ways)
    told = json.loads(cli(*words, "--json").out)
    n, (low, high) = told["calibration SQNR"]["samples"], told["calibration SQNR"]["interval (dB, 95 %)"]
    assert 8 <= n <= 16 and "far off" not in told["calibration SQNR"]
    outputs = []
    for path in (model, tmp_path / "o.onnx"):
        with edgerun.load(path, "onnxruntime") as session:
            outputs.append(session.run({"x": X[:n]})["y"])
    want, have = outputs
    left = np.array([metrics.sqnr_db(np.delete(want, i, 0), np.delete(have, i, 0)) for i in range(n)])
    reach = float(t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * np.square(left - np.mean(left)).sum()))
    middle = float(metrics.sqnr_db(want, have))
    assert told["calibration SQNR (dB)"] == pytest.approx(middle, abs=0.3)
    assert (low, high) == pytest.approx((middle - reach, middle + reach), abs=0.4)
    assert f"{low:.1f} to {high:.1f} (n={n}, 95 %)" in cli(*words).out


EXACT = {
    "passed on": ("float[n,64] x_again", " x_again = Identity(x)"),
    "constant": ("float[3] k", " k = Mul(three, two)"),
    "zero in both": ("float[n,64] z", " p = Abs(x) m = Neg(p) z = Relu(m)"),
}


def deep(path: Path, more: str = "", ends: str = "") -> Path:
    """Seven layers, whose rounding to 4 bits leaves less than 18 dB of y [n, 8]."""
    layers = "".join(f" a{i} = MatMul({'x' if i == 0 else f'r{i - 1}'}, w{i}) r{i} = Relu(a{i})" for i in range(6))
    door = f"(float[n,64] x) => (float[n,8] y{', ' * bool(more)}{more})"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net {door} {{{layers} y = MatMul(r5, w6){ends} }}'
    )
    generator = np.random.default_rng(3)
    arrays = {f"w{i}": 0.18 * generator.standard_normal((64, 8 if i == 6 else 64)) for i in range(7)}
    arrays |= {"three": np.ones(3), "two": np.array(2.0)}
    used = {name for node in proto.graph.node for name in node.input}
    kept = (numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items() if name in used)
    proto.graph.initializer.extend(kept)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("case", EXACT)
def test_an_exact_output_hides_nothing_of_the_others(tmp_path: Path, case: str) -> None:
    """The floor and the number are those of y: without the other output, and by the written model."""
    x = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    told = []
    for more, ends in (("", ""), EXACT[case]):
        model, made = deep(tmp_path / "m.onnx", more, ends), tmp_path / "o.onnx"
        edgerun.compress(model, scheme="w4a16_b32", calibration={"x": x}, output=made, force=True)
        options = edgerun.Model.load(made).history[-1].options
        told.append([options["weights in 8 bits"], options[_reached.REACHED]])
        outputs = []
        for path in (model, made):
            with edgerun.load(path, "onnxruntime") as session:
                outputs.append(session.run({"x": x})["y"])
        assert options[_reached.REACHED] == pytest.approx(metrics.sqnr_db(*outputs), abs=1)  # of some of the samples
    alone, beside = told
    assert beside[0] == alone[0] > 0 and beside[1] == pytest.approx(alone[1], abs=0.5)


def test_one_sample_has_no_interval(tmp_path: Path, cli: Any) -> None:
    out = ran(cli, network(tmp_path / "m.onnx"), X[:1], "--limit", "1").out
    assert "to the float model (n=1)" in out


def spoilt(monkeypatch: pytest.MonkeyPatch, bound: float) -> None:
    """Nobody is near enough: what 8 bits give here lies between 30 and 45 dB."""
    monkeypatch.setattr(_reached, "FAR_DB", bound)


def test_what_is_far_off_is_warned_of(tmp_path: Path, cli: Any) -> None:
    """One sample, 3,000 times as loud as the others, stretches every range: the others are rounded to nothing."""
    x = X.copy()
    x[order(len(x))[200]] *= 3000  # behind those that are judged
    done = ran(cli, network(tmp_path / "m.onnx"), x, "--json")
    told = json.loads(done.out)
    (far,) = told["calibration SQNR"]["far off"]
    assert done.code == 0 and far["output"] == "y" and far["SQNR (dB)"] < 15
    assert "warning: outputs are far" in done.err and told["warnings"][0] in done.err


def test_the_warning_and_its_next_commands(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(tmp_path / "m.onnx")
    quiet = ran(cli, model, X, "--json")
    assert json.loads(quiet.out)["warnings"] == [] and "warning" not in quiet.err
    spoilt(monkeypatch, 90.0)
    done = ran(cli, model, X)
    assert done.code == 0 and "warning: outputs are far from the float model's" in done.err and "'y' " in done.err
    for words in ("not of accuracy", "edgerun compare", "edgerun why-wrong", "edgerun eval", "--max-drop"):
        assert words in done.err
    told = json.loads(ran(cli, model, X, "--json").out)
    (far,) = told["calibration SQNR"]["far off"]
    assert far["output"] == "y" and 20 < far["SQNR (dB)"] < 90 and far["largest error"] > 0
    (warning,) = told["warnings"]
    assert warning in done.err
    assert "why-wrong" not in ran(cli, model, X, "--scheme", "w8a16", "--ranges", "auto").err


def test_probabilities_near_zero_are_not_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors far below a tenth, behind a Sigmoid and a Reshape: a detector that finds nothing. Large ones are."""
    spoilt(monkeypatch, 90.0)

    def far(**net: Any) -> Any:
        model = network(tmp_path / "m.onnx", SIGMOID, **net)
        return compress(model, calibration={"x": X}).history[-1].options["calibration SQNR"].get("far off")

    assert far(shift=-9.0) is None
    assert far(scale=400.0)[0]["largest error"] >= 0.1


def test_class_numbers_have_no_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, 200.0)
    model = network(tmp_path / "m.onnx", f"{LINEAR} c = ArgMax<axis = 1>(z)", more=", int64[n,1] c")
    told = compress(model, calibration={"x": X}).history[-1].options["calibration SQNR"]
    assert [far["output"] for far in told["far off"]] == ["y"]


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (X, (), "300 samples leave ranges open; about "),
        (X, ("--preset", "fast"), "32 samples looked at (of 300) leave ranges open; about "),
        (np.tile(X[:50], (4, 1)), (), "50 different samples (of 200) leave ranges open; about "),
        (np.repeat(X[:50], 4, 0), (), "50 different samples (of 200) leave ranges open; about "),
    ],
)
def test_the_samples_are_those_that_were_given(
    tmp_path: Path, cli: Any, x: np.ndarray, options: tuple[str, ...], words: str
) -> None:
    """75 batches of 4 are 300 samples; what only repeats is not counted, and what was not looked at is said."""
    done = ran(cli, network(tmp_path / "m.onnx"), x, *options)
    assert done.code == 0 and words in done.err
    assert ("--preset default looks at more" in done.err) == bool(options)


def test_copies_tell_nothing_more(tmp_path: Path) -> None:
    """50 samples four times over: as many more would do as of the 50 alone."""
    model = network(tmp_path / "m.onnx")
    found = [compress(model, calibration={"x": x}, ranges="minmax").history[-1].options["calibration"]["coverage"]
             for x in (X[:50], np.tile(X[:50], (4, 1)))]  # fmt: skip
    assert [told["samples"] for told in found] == [50, 50]
    wanted = [told["about this many would do"] for told in found]
    assert 0.4 < wanted[1] / wanted[0] < 2.5


def test_a_file_that_grew_says_so(tmp_path: Path, cli: Any) -> None:
    """And what of it are weights: the .bin beside the .xml."""
    model, words = network(tmp_path / "m.onnx"), ("--scheme", "w4a16_b32", "--json", "-o")
    done = cli("compress", model, *words, tmp_path / "t.xml", "--target", "openvino")
    told = json.loads(done.out)
    assert done.code == 0 and told["bytes"] > told["bytes before"]
    weights = f"{(tmp_path / 't.bin').stat().st_size / 1000:.3g} kB"
    assert (
        "warning: nothing was gained: larger than" in done.err and f"only {weights} are weights" in told["warnings"][0]
    )
    done = cli("compress", model, *words, tmp_path / "t.onnx")
    assert json.loads(done.out)["warnings"] == [] and "warning" not in done.err
