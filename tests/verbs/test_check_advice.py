"""`edgerun check` where it cannot help itself: what would, and what nobody is to blame for."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from tests.verbs.test_check import Cli, needs, quantized, save


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "reference", "tensorrt"])
def test_a_domain_without_an_opset_is_said_once(cli: Cli, tmp_path: Path, target: str) -> None:
    needs(target)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Foo", ["r"], ["y"], "foo", domain="mine"),
    ]
    path = save(tmp_path / "m.onnx", nodes)
    for command in (("check", path, "--fix", tmp_path / "f.onnx"), ("compile", path, "-o", tmp_path / "c.onnx")):
        told = cli(*command, "--target", target)
        assert told.code == 2 and "no opset import\n  got: foo (mine.Foo)" in told.err and "Traceback" not in told.err
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"m.onnx"}


def test_no_node_is_blamed_for_the_opset(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], "relu")], opset=28, ir_version=14)
    told = cli("check", path, "--subgraph", tmp_path / "p.onnx")
    assert told.code == 1 and "no node needs it" in told.out and not (tmp_path / "p.onnx").exists()
    assert "no node fails, but the opset or IR version, so no part was written" in told.err and "Relu" not in told.out


def test_zero_points_are_for_compress(cli: Cli, tmp_path: Path) -> None:
    """Written as int8 they would be there all the same, and TensorRT takes none; 128 of uint8 is 0 of int8."""
    needs("tensorrt")
    told = cli("check", quantized(tmp_path / "m.onnx", zero=7), "--target", "tensorrt")
    assert told.code == 1 and "would try" not in told.out
    assert "what helps: 2 quantizers have zero points" in told.out and "edgerun compress --target tensorrt" in told.out
    fixed = cli("check", tmp_path / "m.onnx", "--target", "tensorrt", "--fix", tmp_path / "f.onnx")
    assert fixed.code == 1 and "not rewritten" in fixed.out and "edgerun compress --target tensorrt" in fixed.out
    told = cli("check", quantized(tmp_path / "n.onnx"), "--target", "tensorrt")
    assert told.code == 1 and "--fix would try: uint8 written as int8" in told.out and "what helps" not in told.out


def test_a_fix_that_has_nothing_to_do_says_what_it_looked_at(cli: Cli, tmp_path: Path) -> None:
    told = cli("check", quantized(tmp_path / "m.onnx"), "--fix", tmp_path / "f.onnx")
    assert told.code == 0 and "refuses none of 4" in told.err and "edgerun compress --target onnxruntime" in told.err
    path = save(tmp_path / "r.onnx", [helper.make_node("Relu", ["x"], ["y"], "relu")])
    told = cli("check", path, "--fix", tmp_path / "f.onnx")
    assert told.code == 0 and "refuses none of 1\n" in told.err and "compress" not in told.err
