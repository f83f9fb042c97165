"""`edgerun check` on products between Q/DQ that run in float all the same, and their cost."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from edgerun.targets._onnxruntime_overhead import Overhead
from tests.verbs.test_check import Cli, needs, quantized


def test_integers_that_run_in_float(cli: Cli, tmp_path: Path) -> None:
    """ONNX Runtime's integer Conv writes integers only; OpenVINO's writes floats too."""
    path = quantized(tmp_path / "m.onnx", size=96)  # takes longer than what a profiler adds to a kernel
    told = cli("check", path, "--json", "--subgraph", tmp_path / "part.onnx")
    assert told.code == 0, "it runs, if in float"
    found = json.loads(told.out)
    assert found["products"] == 1 and [f["node"] for f in found["fell_back"]] == ["conv"]
    assert "no QuantizeLinear follows" in found["fell_back"][0]["reason"] and found["fell_back"][0]["seconds"] is None
    ops = [n.op_type for n in onnx.load(tmp_path / "part.onnx").graph.node]
    assert sorted(ops) == ["Conv", "DequantizeLinear", "DequantizeLinear"]
    strict = cli("check", path, "--strict", "--json")
    assert strict.code == 1 and "1 of 1 products between Q/DQ run in float on onnxruntime" in strict.err
    cost = json.loads(strict.out)["fell_back"][0]
    assert 0 < cost["seconds"]["interval"]["low"] <= cost["seconds"]["value"] <= cost["seconds"]["interval"]["high"]
    assert 0 < cost["share"]["value"] < 1
    assert "µs" in cli("check", path, "--strict").out
    good = cli("check", quantized(tmp_path / "q.onnx", behind=True), "--strict")
    assert good.code == 0 and "1 of 1 products between Q/DQ on integers" in good.out
    needs("openvino")
    assert cli("check", path, "--strict", "--target", "openvino").code == 0


def test_a_cost_below_what_the_profiler_adds(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Overhead, "without", lambda self, seconds, inputs: 0.0)
    strict = cli("check", quantized(tmp_path / "m.onnx"), "--strict")
    assert strict.code == 1 and "less than the profiler can tell" in strict.out
