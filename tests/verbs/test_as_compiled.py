"""An engine is judged on the calibration samples that its graph was judged on: what is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("openvino")

import edgerun
from edgerun import metrics
from edgerun.targets._openvino_session import OvSession

NET = """<ir_version: 8, opset_import: ["": 17]> net (float[n,3,12,12] x) => (float[n,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v) }"""
X = np.random.default_rng(0).standard_normal((64, 3, 12, 12)).astype(np.float32)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    proto = onnx.parser.parse_model(NET)
    for name, shape in {"w": (16, 3, 3, 3), "v": (16, 8)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(generator.standard_normal(shape).astype("f4"), name))
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=X)
    return tmp_path / "m.onnx"


def ran(cli: Any, net: Path, output: str, *options: str) -> Any:
    return cli("compress", net, "-o", net.with_name(output), "--calibration", net.with_name("c.npz"), *options)


def test_what_the_engine_reaches_is_told(net: Path, cli: Any) -> None:
    """The number is that of the written file, run by a session of its own, one sample at a time."""
    told = json.loads(ran(cli, net, "o.xml", "--target", "openvino", "--json").out)["as compiled"]
    with edgerun.load(net, "onnxruntime") as before, edgerun.load(net.with_name("o.xml")) as after:
        n = told["samples"]
        want, have = (np.concatenate([s.run({"x": X[i : i + 1]})["y"] for i in range(n)]) for s in (before, after))
    assert told["target"] == "openvino" and n >= 16
    assert told["SQNR (dB)"] == pytest.approx(metrics.sqnr_db(want, have), abs=0.5)
    low, high = told["interval (dB, 95 %)"]
    assert low < told["SQNR (dB)"] < high
    shown = ran(cli, net, "o.xml", "--target", "openvino", "--force").out
    assert f"as compiled for openvino: SQNR {told['SQNR (dB)']:.1f} dB, {low:.1f} to {high:.1f} (n={n}, 95 %)" in shown


def test_on_onnx_runtime_the_graph_itself_is_what_runs(net: Path, cli: Any) -> None:
    assert "as compiled" not in json.loads(ran(cli, net, "o.onnx", "--target", "onnxruntime", "--json").out)


@pytest.mark.parametrize(("db", "refused"), [(14, True), (60, False)])
def test_an_engine_that_surely_loses_more_is_refused(
    net: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, db: float, refused: bool
) -> None:
    """Noise of 14 dB passes the comparison with the reference, of a graph that is 50 dB near."""
    honest, generator = OvSession._run, np.random.default_rng(2)

    def noisy(self: OvSession, feeds: Any) -> dict[str, np.ndarray]:
        out = honest(self, feeds)
        y = out["y"]
        return out | {"y": y + (y.std() * 10 ** (-db / 20) * generator.standard_normal(y.shape)).astype(np.float32)}

    monkeypatch.setattr(OvSession, "_run", noisy)
    found = ran(cli, net, "o.xml", "--target", "openvino")
    assert found.code == (1 if refused else 0), found.err
    assert net.with_name("o.xml").exists() != refused
    if refused:
        assert "farther from the float model than the graph" in found.err and "n=" in found.err
