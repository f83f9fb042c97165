"""`edgerun compile --size`, twice for one dimension: a recipe is compared within each of its ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgerun import registry
from edgerun.verbs import recipe


@pytest.mark.skipif(registry.target("tensorrt", usable=False).available() is not None, reason="needs tensorrt")
def test_a_recipe_compares_in_every_range(cli: Any, tmp_path: Path) -> None:
    text = "net (float[batch,length,6] x) => (float[batch,length,6] y) { y = Softmax(x) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'), tmp_path / "m.onnx")
    words = ("compile", tmp_path / "m.onnx", "--target", "tensorrt", "-o", tmp_path / "m.recipe")
    sizes = ("--size", "length=1,16,32", "--size", "length=64,128,256", "--size", "batch=1,2,4")
    ran = cli(*words, *sizes)
    assert ran.code == 0, ran.err
    told = recipe.read(tmp_path / "m.recipe")
    assert told.options.sizes == {"length": (1, 16, 32, 64, 128, 256), "batch": (1, 2, 4)}
    lengths = {np.shape(feed["x"])[1] for feed in told.feeds}
    assert any(1 <= length <= 32 for length in lengths) and any(64 <= length <= 256 for length in lengths)
    np.savez(tmp_path / "x.npz", x=np.ones((2, 40, 6), np.float32))
    ran = cli(*words, *sizes, "--data", tmp_path / "x.npz", "--force")
    assert ran.code == 2 and "another size than the engine takes" in ran.err
    assert "batch 1 to 4, length 1 to 32 or batch 1 to 4, length 64 to 256" in ran.err
    ran = cli("check", tmp_path / "m.onnx", "--target", "tensorrt", *sizes)
    assert ran.code == 0 and "taken by tensorrt, and built" in ran.out, ran.err
