"""`edgerun why-wrong` on what `compress` makes of real models: it comes to its end, and adds up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgerun
from bench import zoo
from edgerun.quantize.numerics import causes
from edgerun.verbs.why_wrong import why_wrong


@pytest.mark.zoo
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["magika", "minilm", "nudenet", "silero"])
def test_real_models_are_diagnosed(tmp_path: Path, name: str, target: str) -> None:
    """Inputs of bytes and words, a quantizer behind another in front of a Resize, a loop with a state."""
    model = zoo.model(name)
    if not model.ready:
        pytest.skip(f"needs the zoo's {name}: make zoo")
    small = edgerun.compress(model.onnx, target=target, calibration=model.calibration, preset="fast", placement="rules")
    metric = "boxes" if name == "nudenet" else None
    found = why_wrong(model.onnx, small, model.calibration, target=target, limit=8, top=2, metric=metric)
    assert found.rows and 5 < found.sqnr_db < 60 and all(np.isfinite(row.alone_db) for row in found.rows)
    assert {row.cause for row in found.rows} - {causes.CALIBRATION, causes.PREPROCESSING}, "the data is the same"
    assert not any("no float weight" in note for note in found.notes)
    assert (found.drop_points is None) == (metric is None)
