"""Compression of models over 2 GB, by small ones that count as large: what it gives in memory, with weights mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from bench.big import computed, sparse  # noqa: E402
from edgerun import external  # noqa: E402
from edgerun.verbs.compile import compile  # noqa: E402
from edgerun.verbs.compress import compress  # noqa: E402
from edgerun.verbs.load import load  # noqa: E402

LAYERS, WIDTH = 3, 320  # a bias has more than 1 KiB, too
X = np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sparse(tmp_path / "m.onnx", LAYERS, WIDTH)
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("scheme", ["w4a16_b32", "w8a8_dynamic"])
def test_compress_gives_what_it_gives_in_memory(
    path: Path, large: None, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = compress(path, scheme=scheme)
    monkeypatch.setattr(external, "ABOVE", 1 << 30)
    assert mapped.to_bytes() == compress(path, scheme=scheme).to_bytes()


@pytest.mark.parametrize("samples", [0, 32])
def test_w8a16_is_unpacked_while_it_runs(path: Path, tmp_path: Path, large: None, samples: int) -> None:
    """Opened, it would be floats again: several times what the float model takes."""
    layers, data = sparse(path, LAYERS, WIDTH), np.random.default_rng(2).standard_normal((samples, WIDTH))
    given = {"x": data.astype(np.float32)} if samples else None
    result = compress(path, scheme="w8a16", calibration=given, output=tmp_path / "small.onnx")
    assert [node.op_type for node in result.ir.graph].count("MatMulNBits") == LAYERS
    assert result.weight_bytes() < 0.33 * 4 * LAYERS * WIDTH**2
    wanted = computed(layers, X)
    with load(tmp_path / "small.onnx") as session:
        error = session.run({"x": X})["y"] - wanted
    assert 10 * np.log10(np.square(wanted).sum() / np.square(error).sum()) > 38


def test_w4a16_with_calibration(path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in memory to 0.1 dB: kernels that leave weights in their files add in another order."""
    data = {"x": np.random.default_rng(2).standard_normal((32, WIDTH)).astype(np.float32)}
    told = [compress(path, scheme="w4a16_b32", calibration=data).history[-1].options]
    monkeypatch.setattr(external, "ABOVE", 1 << 30)
    told.append(compress(path, scheme="w4a16_b32", calibration=data).history[-1].options)
    for key in ("rounding", "weights in 4 bits", "weights in 8 bits"):
        assert told[0][key] == told[1][key]
    assert told[0]["calibration SQNR (dB)"] == pytest.approx(told[1]["calibration SQNR (dB)"], abs=0.1)


def test_weights_apart_in_one_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 256 MB on a runtime gets arrays; the engine's file is as ever."""
    whole = compile(path, "onnxruntime", output=tmp_path / "whole.onnx")
    monkeypatch.setattr(external, "APART", 500_000)
    apart = compile(path, "onnxruntime", output=tmp_path / "apart.onnx")
    assert apart.weights and not whole.weights
    assert (tmp_path / "apart.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_compress_with_calibration(path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": np.random.default_rng(2).standard_normal((32, WIDTH)).astype(np.float32)}
    mapped = compress(path, calibration=data)
    monkeypatch.setattr(external, "ABOVE", 1 << 30)
    assert mapped.to_bytes() == compress(path, calibration=data).to_bytes()
