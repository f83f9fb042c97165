"""What a compression says of its data and of its own options, on the command line and to Python, also when refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.compat import nncf
from edgerun.compat.onnxruntime import quantize_static
from edgerun.errors import GateFailed, Unsupported
from edgerun.verbs import placements
from edgerun.verbs.compress import compress
from tests.verbs.test_compress import X, model, network

__all__ = ["model"]  # a fixture


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (np.arange(15), "15 calibration samples are few"),
        (np.arange(16), "16 samples are too few to say whether they suffice"),
        (np.arange(28), "28 samples are too few to say whether they suffice"),
        (np.tile(np.arange(16), 4), "16 different samples (of 64) leave ranges open"),
        (np.arange(40), "40 samples leave ranges open"),
    ],
)
def test_no_number_of_samples_is_passed_over(
    tmp_path: Path, model: Path, cli: Any, rows: np.ndarray, told: str
) -> None:
    """One statement on whether they suffice, whatever their number."""
    np.savez(tmp_path / "few.npz", x=X[rows])
    done = cli("compress", model, "-o", tmp_path / "small.onnx", "--calibration", tmp_path / "few.npz")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("calibration data: ") and "repeat" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"calibration data: {told}")
    assert ("so few samples say little of others" in done.out) == (told == "15 calibration samples are few")


@pytest.mark.parametrize(
    ("samples", "told"), [(1, "1 calibration sample is few"), (3, "3 calibration samples are few")]
)
def test_next_to_no_samples(tmp_path: Path, model: Path, cli: Any, samples: int, told: str) -> None:
    """What is lost of the very samples that set the ranges is told as that, and for one without an interval."""
    np.savez(tmp_path / "few.npz", x=X[:samples])
    done = cli("compress", model, "-o", tmp_path / "small.onnx", "--calibration", tmp_path / "few.npz")
    assert done.code == 0 and told in done.err, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("on the calibration data")]
    assert line.endswith(f"(n={samples}{', 95 %' * (samples > 1)}); so few samples say little of others")


def by_verb(path: Path, folder: Path, data: Any) -> None:
    compress(path, calibration=data)


def by_onnxruntime(path: Path, folder: Path, data: Any) -> None:
    quantize_static(path, folder / "q.onnx", data)


def by_nncf(path: Path, folder: Path, data: Any) -> None:
    nncf.quantize(path, nncf.Dataset([row[None] for row in data["x"]]))


@pytest.mark.parametrize("door", [by_verb, by_onnxruntime, by_nncf])
def test_python_hears_of_it(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture, door: Callable[..., None]
) -> None:
    door(model, tmp_path, {"x": X[:9]})
    (told,) = [record for record in caplog.records if "samples are few" in record.getMessage()]
    assert told.name == "edgerun" and told.levelno == logging.WARNING


def test_python_hears_of_random_data(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    compress(model, calibration="random:40", ranges="minmax")
    assert [r for r in caplog.records if "random noise" in r.getMessage()]


def test_a_refusal_by_the_clock_is_told_of_the_data_too(
    tmp_path: Path, model: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise GateFailed("w8a8 does not pay")

    monkeypatch.setattr(placements, "held", refused)
    done = cli("compress", model, "-o", tmp_path / "small.onnx", "--calibration", "random:9", "--placement", "clock")
    assert done.code == 1 and "does not pay" in done.err
    assert "random noise" in done.err and "9 calibration samples are few" in done.err


@pytest.mark.parametrize("scheme", ["w8a8", "fp16"])
def test_what_is_all_kept_in_float_says_whose_wish_that_is(model: Path, scheme: str) -> None:
    kept = ["a", "c", "y"][: 3 if scheme == "w8a8" else 2]  # the last has less weights than float16 is for
    with pytest.raises(Unsupported, match="--keep-float leaves nothing that this scheme would change") as refused:
        compress(model, scheme=scheme, calibration={"x": X}, keep_float=kept)
    assert all(name in str(refused.value) for name in kept) and "name fewer nodes" in str(refused.value)


def test_nothing_to_compare_names_the_option_of_the_verb(tmp_path: Path, cli: Any) -> None:
    """Outputs that overflow on drawn inputs: real ones are wanted, by the option that compress has."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[n,16] x) => (float[n,16] y) {{
        a = MatMul(x, w) y = MatMul(a, w) }}"""
    path = network(tmp_path / "loud.onnx", text=text, w=np.full((16, 16), 1e38, np.float32))
    done = cli("compress", path, "-o", tmp_path / "small.onnx", "--scheme", "w8a16")
    assert done.code == 2 and "nothing was compared" in done.err and "compress: --calibration" in done.err
