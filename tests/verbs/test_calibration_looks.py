"""`edgerun compress` on pictures in a wrong layout, out of any form, or with a dead channel: its exit and words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.verbs.conftest import Ran
from tests.verbs.test_check import save

Cli = Callable[..., Ran]
SIDE = 24


def pictures() -> np.ndarray:
    """Waves of three colours, 0..255, float32 [24, 3, 24, 24]."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    phase = generator.uniform(0, 6, (24, 3, 2, 1, 1))
    waves = np.sin(4 * x + phase[:, :, 0]) + np.cos(3 * y + phase[:, :, 1])
    pixels: np.ndarray = (127 + 60 * waves).clip(0, 255).astype(np.float32)
    return pixels


@pytest.fixture(params=[False, True], ids=["NCHW", "NHWC"])
def last(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def compressed(cli: Cli, folder: Path, x: np.ndarray, last: bool) -> Ran:
    """A Conv on pictures, in either layout, compressed with `x`."""
    weight = np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32) / 400
    nodes = [helper.make_node("Conv", ["t" if last else "x", "w"], ["y"], "conv")]
    if last:
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["t"], "turn", perm=[0, 3, 1, 2]))
    shape: list[int | str] = ["n", SIDE, SIDE, 3] if last else ["n", 3, SIDE, SIDE]
    path = save(folder / "m.onnx", nodes, [("x", TensorProto.FLOAT, shape)],
                [("y", TensorProto.FLOAT, ["n", 8, SIDE - 2, SIDE - 2])], {"w": weight}, 17, 8)  # fmt: skip
    np.savez(folder / "c.npz", x=x)
    return cli("compress", path, "--calibration", folder / "c.npz", "-o", folder / "small.onnx", "--json")


def laid(x: np.ndarray, last: bool) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x


def test_right_pictures_give_no_word(cli: Cli, tmp_path: Path, last: bool) -> None:
    ran = compressed(cli, tmp_path, laid(pictures(), last), last)
    assert ran.code == 0, ran.err
    assert not [w for w in json.loads(ran.out)["calibration"]["warnings"] if "input 'x'" in w]


def test_a_reshape_where_a_transpose_belongs_is_refused(cli: Cli, tmp_path: Path, last: bool) -> None:
    right = laid(pictures(), last)
    ran = compressed(cli, tmp_path, laid(pictures(), not last).reshape(right.shape), last)
    assert ran.code == 2 and not (tmp_path / "small.onnx").exists()
    assert f"the pictures lie in {'NCHW' if last else 'NHWC'} order in an array of" in ran.err
    assert "times as smooth" in ran.err and "wanted: pixels in" in ran.err and "do: transpose" in ran.err


def test_a_transposed_array_is_told_its_layout(cli: Cli, tmp_path: Path, last: bool) -> None:
    ran = compressed(cli, tmp_path, laid(pictures(), not last), last)
    assert ran.code == 2 and "wrong shape" in ran.err
    assert ("NCHW: array.transpose(0, 2, 3, 1)" if last else "NHWC: array.transpose(0, 3, 1, 2)") in ran.err


def test_what_no_picture_has_is_told(cli: Cli, tmp_path: Path, last: bool) -> None:
    x = pictures()
    x[:, 2] = 0
    ran = compressed(cli, tmp_path, laid(x * 1000, last), last)
    assert ran.code == 0, ran.err
    warnings = json.loads(ran.out)["calibration"]["warnings"]
    assert [w for w in warnings if "numbers reach 2" in w and "out of every form" in w]
    assert [w for w in warnings if "channel 2 is 0 everywhere" in w]
    assert "channel 2 is 0 everywhere" in ran.err
