"""What the doors of other tools' shape give is never slower than float: timed as `compress` times it, or refused.

On the same grouped convolutions as `tests/verbs/test_clock.py`, several times slower on integers than in float.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgerun.compat import nncf
from edgerun.compat.onnxruntime import CalibrationDataReader, CalibrationMethod, quantize_static
from edgerun.errors import GateFailed
from edgerun.model import Model
from edgerun.verbs.compress import compress
from tests.verbs.test_clock import IMAGES, LAYERS, MIXED, SLOW, build

pytestmark = pytest.mark.alone
GROUPED = {f"c{i}" for i in range(LAYERS)}


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._items = iter([{"x": row[None]} for row in IMAGES["x"]])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._items, None)


def by_onnxruntime(model: Path, folder: Path, **options: Any) -> Model:
    return quantize_static(model, folder / "q.onnx", Reader(), calibrate_method=CalibrationMethod.MinMax, **options)


def by_nncf(model: Path, folder: Path, **options: Any) -> Model:
    made = nncf.quantize(model, nncf.Dataset([row[None] for row in IMAGES["x"]]), **options)
    assert isinstance(made, Model)
    return made


DOORS = pytest.mark.parametrize("door", [by_onnxruntime, by_nncf])
Door = Callable[..., Model]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: nothing told by the environment."""
    monkeypatch.delenv("EDGERUN_PLACEMENT")


def in_float(model: Model) -> set[str]:
    """Convolutions and products whose weight comes from no DequantizeLinear."""
    found = set()
    for node in model.ir.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            producer = node.inputs[1].producer() if node.inputs[1] is not None else None
            if producer is None or producer.op_type != "DequantizeLinear":
                found.add(str(node.name))
    return found


@DOORS
def test_what_does_not_pay_is_refused(tmp_path: Path, door: Door) -> None:
    """With the ratio, and nothing written; allow_slower gives it all the same."""
    model = build(tmp_path / "slow.onnx", SLOW)
    with pytest.raises(GateFailed, match=r"0\.\d\d \[.*times as fast as fp32"):
        door(model, tmp_path)
    assert not (tmp_path / "q.onnx").exists()
    with pytest.warns(UserWarning, match="not surely faster"):
        made = door(model, tmp_path, allow_slower=True)
    assert not in_float(made)


@DOORS
def test_what_does_not_pay_stays_float(tmp_path: Path, door: Door) -> None:
    """The grouped convolutions (nearly all: the others cost less than the clock sees), said in a warning; the wide
    product is on integers."""
    model = build(tmp_path / "mixed.onnx", MIXED)
    with pytest.warns(UserWarning, match="stays float, since that is faster: .*c\\d"):
        made = door(model, tmp_path)
    assert len(in_float(made) & GROUPED) >= LAYERS - 2 and "d" not in in_float(made)


def test_the_same_as_compress(tmp_path: Path) -> None:
    """The placement that the clock kept is asked for again, so nothing depends on a second timing."""
    model = build(tmp_path / "mixed.onnx", MIXED)
    with pytest.warns(UserWarning, match="stays float"):
        made = by_onnxruntime(model, tmp_path)
    expected = compress(model, calibration=IMAGES, ranges="minmax")
    assert made.to_bytes() == expected.to_bytes() == (tmp_path / "q.onnx").read_bytes()
