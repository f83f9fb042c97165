"""`edgerun compile --input-shape`: which shapes kernels are ready for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from edgerun.model import Model
from edgerun.targets import _openvino_ir as ir
from edgerun.targets import openvino as target

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
NET = """<ir_version: 8, opset_import: ["": 17]> net (float[n,3,h,h] x) => (float[n,4] y) {
  c = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, w)  r = Relu(c)  g = GlobalAveragePool(r)  y = Flatten(g) }"""


def test_said_on_the_command_line(tmp_path: Path, cli: Callable[..., Any]) -> None:
    proto = onnx.parser.parse_model(NET)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    Model.from_proto(proto).save(tmp_path / "net.onnx")
    ran = cli("compile", tmp_path / "net.onnx", "-o", tmp_path / "net.xml", "--input-shape", "x:[1,3,8,8]", "--json")
    assert ran.code == 0 and "x[1, 3, 8, 8]" in ran.out, ran.err
    assert ir.told(ir.read(tmp_path / "net.xml"))["usual"] == {"x": (1, 3, 8, 8)}
    ran = cli("compile", tmp_path / "net.onnx", "-o", tmp_path / "open.xml", "--input-shape", "x:[n,3,8,8]")
    assert ran.code == 2 and "--input-shape" in ran.err and not (tmp_path / "open.xml").exists()
