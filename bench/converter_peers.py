"""The other route from a framework to ONNX, for one row: `python -m bench.converter_peers NAME SOURCE OUTPUT`.

PyTorch: torch.onnx and onnxslim. ONNX: onnxslim. Keras: its export to TensorFlow, then tf2onnx. TensorFlow and TFLite:
tf2onnx. Writes OUTPUT, or fails with the reason as the last line of stderr.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.converter_rows import ROWS, Row
from edgerun.runtime import TensorSpec

OPSET = 18  # tf2onnx's newest


def pytorch(row: Row, source: Path, output: Path) -> None:
    """What torch.onnx exports, after onnxslim."""
    from bench import torch_coverage
    from edgerun.converters import pytorch

    specs = [TensorSpec.parse(text) for text in row.options.get("inputs", ())]
    with torch_coverage.exports() as kept:
        pytorch.convert(source, inputs=specs, factory=row.options.get("factory"), opset=20)
    output.write_bytes(torch_coverage.slimmed(kept[-1]).SerializeToString())


def onnx(row: Row, source: Path, output: Path) -> None:
    """The file after onnxslim."""
    import onnx
    import onnxslim  # type: ignore[import-not-found]

    onnx.save(onnxslim.slim(str(source)), output)


def keras(row: Row, source: Path, output: Path) -> None:
    """tf2onnx of the SavedModel that Keras on TensorFlow exports."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras  # type: ignore[import-untyped]

    saved = output.with_name("saved")
    model: Any = keras.models.load_model(source, compile=False)
    model.export(saved, verbose=False)
    tensorflow(row, saved, output)


def tensorflow(row: Row, source: Path, output: Path) -> None:
    """tf2onnx of a SavedModel."""
    _tf2onnx("--saved-model", source, output)


def tflite(row: Row, source: Path, output: Path) -> None:
    """tf2onnx of a TFLite file."""
    _tf2onnx("--tflite", source, output)


def _tf2onnx(kind: str, source: Path, output: Path) -> None:
    command = [sys.executable, "-m", "tf2onnx.convert", kind, str(source), "--output", str(output)]
    subprocess.run([*command, "--opset", str(OPSET)], stdout=subprocess.DEVNULL)


ROUTES = {"PyTorch": pytorch, "ONNX": onnx, "Keras": keras, "TensorFlow": tensorflow, "TFLite": tflite}


def main(name: str, source: str, output: str) -> None:
    """Convert the file of the row `name`."""
    row = ROWS[name]
    ROUTES[row.framework](row, Path(source), Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
