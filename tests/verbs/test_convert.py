"""`edgerun convert`: the whole way through the command line, bad input, interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun import draws, registry  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.runtime import TensorSpec  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402
from tests.verbs.conftest import Ran, as_a_shell_starts, interrupted, save_linear  # noqa: E402

WEIGHT = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    return save_linear(tmp_path / "linear.onnx", WEIGHT)


def _cli(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgerun", "convert", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_table_progress_and_file(linear: Path, tmp_path: Path) -> None:
    ran = _cli("linear.onnx", "-o", "out.onnx", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "converters/onnx reads linear.onnx" in ran.stderr
    assert "random" in ran.stdout and "max abs error" in ran.stdout and "reads" not in ran.stdout
    model = Model.load(tmp_path / "out.onnx")
    step = model.history[-1]
    assert step.name == "converters/onnx" and step.after == model.digest() and len(step.before) == 64
    assert Parity.of(model).passed


def test_json(linear: Path, tmp_path: Path) -> None:
    ran = _cli("linear.onnx", "-o", "out.onnx", "--json", "--input", "x:float32[n,3]", folder=tmp_path)
    found = json.loads(ran.stdout)
    assert found["passed"] is True and found["inputs"] == ["x:float32[n,3]"]
    assert found["outputs"][0]["name"] == "y" and found["outputs"][0]["relative_error"] <= 1e-6
    assert found["reference"] == "source" and len(found["shapes"]) == 3


def test_data_of_ones_own(linear: Path, tmp_path: Path) -> None:
    """Compared on beside random inputs: the first 32 samples, told in the table, in JSON and in the history."""
    np.savez(tmp_path / "own.npz", x=np.arange(120, dtype=np.float32).reshape(40, 3))
    ran = _cli("linear.onnx", "-o", "out.onnx", "--data", "own.npz", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "random, seed 0" in ran.stdout and "32 samples of the data given" in ran.stdout
    parity = Parity.of(Model.load(tmp_path / "out.onnx"), "parity on data")
    assert parity.passed and parity.shapes == ("x[4, 3]",) * 8
    found = convert(linear, data={"x": np.ones((2, 3), np.float32)})
    assert Parity.of(found, "parity on data").shapes == ("x[2, 3]",)
    told = _cli("linear.onnx", "-o", "again.onnx", "--json", "--data", "own.npz", folder=tmp_path)
    assert json.loads(told.stdout)["on data"]["outputs"][0]["relative_error"] <= 1e-6
    wrong = _cli("linear.onnx", "-o", "third.onnx", "--data", "none.npz", folder=tmp_path)
    assert wrong.returncode == 2 and "none.npz" in wrong.stderr and not (tmp_path / "third.onnx").exists()


def test_the_same_source_gives_the_same_bytes(linear: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        convert(linear, output=tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none.onnx"], 2, "does not exist"),
        (["empty.onnx"], 2, "empty"),
        (["cut.onnx"], 2, "truncated"),
        (["future.onnx"], 3, "from the future"),
        (["picture.png"], 2, "no converter recognises"),
        (["linear.onnx", "--input", "z:float32[1,3]"], 2, "no input 'z'"),
        (["linear.onnx", "--input", "x;3"], 2, "not understood"),
        (["linear.onnx", "--input", "x:float64[1,3]"], 2, "another dtype"),
        (["linear.onnx", "--factory", "a:b"], 2, "needs no factory"),
        (["linear.onnx", "--opset", "99"], 2, "cannot use this opset"),
        (["linear.onnx", "--target", "onnxruntim"], 2, "did you mean 'onnxruntime'"),
        (["linear.onnx", "--from", "kers"], 2, "did you mean 'keras'"),
        (["linear.onnx", "-o", "no/out.onnx"], 2, "folder does not exist"),
        (["linear.onnx", "-o", "old.onnx"], 2, "the output exists"),
    ],
)
def test_bad_input_is_one_clear_error(
    linear: Path,
    tmp_path: Path,
    cli: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.onnx").write_bytes(b"old")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "cut.onnx").write_bytes(linear.read_bytes()[:-20])
    future = onnx.load(linear)
    future.opset_import[0].version = 999
    (tmp_path / "future.onnx").write_bytes(future.SerializeToString())
    before = sorted(tmp_path.iterdir())
    ran = cli("convert", *words, *([] if "-o" in words else ["-o", "out.onnx"]))
    assert ran.code == code, ran.err
    assert message in ran.err and ran.out == ""
    assert ran.err.count("error: ") == 1
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "old.onnx").read_bytes() == b"old"


def test_force_replaces(linear: Path, tmp_path: Path) -> None:
    (tmp_path / "old.onnx").write_bytes(b"old")
    assert _cli("linear.onnx", "-o", "old.onnx", "--force", folder=tmp_path).returncode == 0
    assert Model.load(tmp_path / "old.onnx").history


def test_missing_extra(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = SimpleNamespace(
        requires=("no_such_framework",), extra="odd", newest_opset=21, summary="odd", recognises=lambda source: True
    )
    monkeypatch.setattr(registry, "converter", lambda name: absent)
    with pytest.raises(Unsupported, match=r"needs no_such_framework: pip install 'edgerun\[odd\]'") as caught:
        convert(linear)
    assert caught.value.exit_code == 3


def test_a_file_that_hangs_or_needs_too_much_memory(linear: Path, tmp_path: Path) -> None:
    ran = _cli("linear.onnx", "-o", "out.onnx", "--memory-cap", "0.02", folder=tmp_path)
    assert ran.returncode == 2 and "more memory than the limit" in ran.stderr
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["s"], keepdims=0),
            helper.make_node("Add", ["x", "s"], ["y"]),
        ],
        "bomb",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "bomb.onnx"
    )
    with pytest.raises(EdgerunError):
        convert(tmp_path / "bomb.onnx", output=tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_ctrl_c_leaves_nothing(linear: Path, tmp_path: Path) -> None:
    """The factory of a state_dict waits: then the interrupt comes."""
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "net.pt")
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef net():\n    pathlib.Path('started').touch()\n    time.sleep(600)\n"
    )
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edgerun",
            "convert",
            "net.pt",
            "-o",
            "out.onnx",
            "--factory",
            "slow:net",
            "--input",
            "x:float32[1]",
        ],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        preexec_fn=as_a_shell_starts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    out, err = interrupted(process)
    assert process.returncode == 130
    assert out == "" and "interrupted" in err and "Traceback" not in err
    assert not (tmp_path / "out.onnx").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_draws_batch_and_other_dimensions() -> None:
    specs = [
        TensorSpec("a", "float32", ("n", 3, "h")),
        TensorSpec("b", "int64", ("n",)),
        TensorSpec("c", "bool", (2, "h")),
    ]
    assert draws.sizes(specs, 2, 7) == {"h": 7, "n": 2}
    feeds = draws.feeds(specs, {"h": 7, "n": 2}, seed=1)
    assert {name: (a.shape, a.dtype.name) for name, a in feeds.items()} == {
        "a": ((2, 3, 7), "float32"), "b": ((2,), "int64"), "c": ((2, 7), "bool"),
    }  # fmt: skip
    again = draws.feeds(specs, {"h": 7, "n": 2}, seed=1)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    assert draws.sizes([TensorSpec("v", "float32", ("n",))], 3, 9) == {"n": 3}
