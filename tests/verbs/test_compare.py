"""`edgerun compare` against numpy in float64."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError, GateFailed


def expected(place: Any) -> tuple[float, float, float]:
    """SQNR in dB, largest error and agreement of b against a, from the weights alone."""
    r, v = place.x @ place.w.astype(np.float64), place.x @ place.w_b.astype(np.float64)
    sqnr = 10 * math.log10((r**2).sum() / ((r - v) ** 2).sum())
    return sqnr, float(np.abs(r - v).max()), float((r.argmax(1) == v.argmax(1)).mean())


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_the_numbers_are_numpys_whatever_the_batch(place: Any, batch: int) -> None:
    result = edgerun.compare(place.a, place.b, place.data, batch=batch)
    sqnr, error, agreement = expected(place)
    (output,) = result.outputs
    assert output.name == "y" and result.samples == 300
    assert output.sqnr_db == pytest.approx(sqnr, abs=1e-3)
    assert output.max_abs_error == pytest.approx(error, abs=1e-5)
    assert output.agreement == agreement


def test_json_table_and_gate(place: Any, cli: Any) -> None:
    ran = cli("compare", place.a, place.b, "--data", place.data, "--json")
    found = json.loads(ran.out)
    assert ran.code == 0 and found["samples"] == 300 and len(found["data"]) == 64
    sqnr = found["outputs"][0]["sqnr_db"]
    assert cli("compare", place.a, place.b, "--data", place.data, "--min-sqnr", sqnr - 0.01).code == 0
    failed = cli("compare", place.a, place.b, "--data", place.data, "--min-sqnr", sqnr + 0.01)
    assert failed.code == 1 and "differ too much" in failed.err
    header, row = failed.out.splitlines()
    assert header.split()[:3] == ["output", "SQNR", "dB"] and row.split()[0] == "y" and row.split()[-1] == "300"


def test_identical_models_are_infinitely_close(place: Any, cli: Any) -> None:
    ran = cli("compare", place.a, f"{place.a}@onnxruntime", "--data", place.data, "--min-sqnr", "200")
    assert ran.code == 0 and "inf" in ran.out
    found = json.loads(cli("compare", place.a, place.a, "--data", place.data, "--json").out)["outputs"][0]
    assert found["sqnr_db"] is None and found["max_abs_error"] == 0 and found["agreement"] == 1


def test_two_targets_agree(place: Any) -> None:
    result = edgerun.compare(place.a, place.a, place.data, target="onnxruntime", target_b="openvino")
    assert result.outputs[0].sqnr_db > 100


def test_outputs_under_other_names_are_paired_by_place(place: Any) -> None:
    other = place.save(place.folder / "c.onnx", names=("x", "logits"))
    assert edgerun.compare(place.a, other, place.data).outputs[0].sqnr_db == math.inf


def test_limit_and_random_are_told(place: Any, cli: Any) -> None:
    assert edgerun.compare(place.a, place.b, place.data, limit=11).samples == 11
    ran = cli("compare", place.a, place.b, "--data", "random:8")
    assert ran.code == 0 and "random noise" in ran.err and "noise" not in ran.out


def test_open_sessions_stay_open(place: Any) -> None:
    with edgerun.load(place.a) as session:
        edgerun.compare(session, place.b, place.data)
        assert session.run({"x": place.x[:1]})["y"].shape == (1, 4)


def test_a_broken_output_fails_the_gate(place: Any) -> None:
    w = place.w.copy()
    w[0, 0] = np.nan
    broken = edgerun.compare(place.a, place.save(place.folder / "n.onnx", w), place.data)
    assert broken.outputs[0].sqnr_db == -math.inf and broken.outputs[0].agreement == 0
    with pytest.raises(GateFailed):
        broken.require(-1000)


def test_different_doors_are_refused(place: Any) -> None:
    wide = place.save(place.folder / "w.onnx", place.w[:, :3])
    with pytest.raises(EdgerunError, match="different shape"):
        edgerun.compare(place.a, wide, place.data)
    renamed = place.save(place.folder / "r.onnx", names=("z", "y"))
    with pytest.raises(EdgerunError, match=r"'z' is missing"):
        edgerun.compare(place.a, renamed, place.data)


def _npz(place: Any, **arrays: np.ndarray) -> str:
    np.savez(place.folder / "bad.npz", **arrays)  # type: ignore[arg-type]
    return str(place.folder / "bad.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 8))}, "wrong dtype"),
        ({"x": np.zeros((4, 7), np.float32)}, "wrong shape"),
        ({"p": np.zeros((4, 8), np.float32), "q": np.zeros(4)}, "input 'x' is missing"),
        ({"x": np.full((4, 8), np.nan, np.float32)}, "NaN or infinity"),
        ({"x": np.zeros((0, 8), np.float32)}, "empty"),
    ],
)
def test_bad_data_is_misuse(place: Any, cli: Any, arrays: dict[str, np.ndarray], message: str) -> None:
    ran = cli("compare", place.a, place.b, "--data", _npz(place, **arrays))
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err and ran.out == ""


@pytest.mark.parametrize(
    ("a", "options", "code", "message"),
    [
        ("nope.onnx", ["--data", "d.npz"], 2, "does not exist"),
        ("a.onnx@openvno", ["--data", "d.npz"], 2, "did you mean 'openvino'?"),
        ("a.onnx", ["--data", "d.npz", "--target", "nope"], 2, "unknown target"),
        ("a.onnx", ["--data", "nope.npz"], 2, "the data does not exist"),
        ("a.onnx", [], 2, "--data"),
        ("a.onnx", ["--data", "d.npz", "--batch", "0"], 2, "--batch"),
        ("d.npz", ["--data", "d.npz"], 2, "no target reads this kind of file"),
    ],
)
def test_misuse(
    place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, a: str, options: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(place.folder)
    ran = cli("compare", a, "b.onnx", *options)
    assert ran.code == code and message in ran.err and ran.out == ""


def test_a_device_is_where_both_run(place: Any, cli: Any) -> None:
    """A board's target runs both; hardware is named in the target's own word, and one that is missing is no other."""
    data = ("--data", "random:4")
    assert cli("compare", place.a, place.a, *data, "--device", "raspberry-pi-4", "--min-sqnr", "100").code == 0
    if not registry.target("openvino", usable=False).available():
        for device, code in (("CPU", 0), ("NPU", 3)):
            ran = cli("compare", place.a, place.a, *data, "--target", "openvino", "--device", device)
            assert ran.code == code and (code == 0 or "no NPU here" in ran.err), ran.err
