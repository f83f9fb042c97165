"""Placement from the clock: what is slower than fp32 is partly left in float or refused, and no time is taken twice.

ONNX Runtime runs grouped convolutions (not depthwise ones) several times slower on integers than in float, and a wide
matrix product several times faster. Other tests on the same cores could still hide that: these run with nothing beside
them (`make test`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from edgerun import cache
from edgerun.data import open_data
from edgerun.errors import EdgerunError, GateFailed
from edgerun.measure import brief
from edgerun.model import Model
from edgerun.runtime import TensorSpec
from edgerun.verbs.clock import Speed, feed_for
from edgerun.verbs.compress import compress
from edgerun.verbs.making import KEPT

pytestmark = pytest.mark.alone

LAYERS = 10
GROUPED = "".join(f"c{i} = Conv<group=4,pads=[2,2,2,2]>({'x' if i == 0 else f's{i - 1}'}, w{i}) s{i} = Sigmoid(c{i}) "
                  for i in range(LAYERS))  # fmt: skip
SLOW = f"(float[n,8,24,24] x) => (float[n,8,24,24] s{LAYERS - 1}) {{ {GROUPED} }}"
MIXED = f"""(float[n,8,24,24] x) => (float[n,10] y) {{ {GROUPED}
    f = Flatten(s{LAYERS - 1}) d = MatMul(f, wide) r = Relu(d) y = MatMul(r, last) }}"""
FIRST = """(float[n,8,24,24] x) => (float[n,10] y) { low = Constant<value_float = -2.0>()
    high = Constant<value_float = 2.0>() c0 = Conv<group=4,pads=[2,2,2,2]>(x, w0) k = Clip(c0, low, high)
    c1 = Conv<group=4,pads=[2,2,2,2]>(k, w1) f = Flatten(c1) d = MatMul(f, wide) r = Relu(d) y = MatMul(r, last) }"""
WIDE = "(float[n,1024] x) => (float[n,10] y) { d = MatMul(x, square) r = Relu(d) y = MatMul(r, narrow) }"
SHAPES = {
    **{f"w{i}": (8, 2, 5, 5) for i in range(LAYERS)}, "wide": (4608, 1024), "last": (1024, 10), "square": (1024, 1024),
    "narrow": (1024, 10),
}  # fmt: skip


def build(path: Path, text: str) -> Path:
    proto, generator = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {text}'), np.random
    used = {name for node in proto.graph.node for name in node.input}
    for name, shape in SHAPES.items():
        if name in used:
            spread = np.sqrt(2 / np.prod(shape[1:] if len(shape) > 2 else shape[:1]))
            array = generator.default_rng(len(name)).standard_normal(shape) * spread
            proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.save(proto, path)
    return path


def data(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)}


IMAGES, ROWS = data(8, 24, 24), data(1024)
Made = tuple[Model, Speed]


def clocked(model: Path, calibration: dict[str, np.ndarray], **options: Any) -> Made:
    """The result by the clock, and what it said."""
    said: list[Speed] = []
    made = compress(model, calibration=calibration, ranges="minmax", placement="clock", clocked=said.append, **options)
    return made, said[0]


def kept_files() -> list[dict[str, Any]]:
    return [json.loads(cache.read("clock", path.name) or b"{}") for path in (cache.folder() / "clock").glob("[!.]*")]


def test_what_pays_is_as_the_rules_say(tmp_path: Path) -> None:
    """The bytes are those of the rules; the second time the answer is given again without timing."""
    model = build(tmp_path / "wide.onnx", WIDE)
    rules = compress(model, calibration=ROWS, ranges="minmax", placement="rules").to_bytes()
    assert not kept_files()
    first, said = clocked(model, ROWS)
    assert first.to_bytes() == rules
    assert (said.answer, said.kept, said.earlier) == ("faster", {}, False)
    assert said.speedup is not None and said.speedup.interval.low > 1.01 and said.feed == ("x:float32[1,1024]",)
    again, told = clocked(model, ROWS)
    assert again.to_bytes() == rules and told.earlier and told.speedup == said.speedup
    (known,) = kept_files()
    assert known["key"]["float"] == Model.load(model).digest() and known["key"]["rules"] == first.digest()


def test_what_does_not_pay_stays_float(tmp_path: Path) -> None:
    """Grouped convolutions stay float, with the reason in the history and no time; the wide product is on integers."""
    model = build(tmp_path / "mixed.onnx", MIXED)
    made, said = clocked(model, IMAGES)
    assert said.answer == "faster" and said.pays and said.tried >= 1
    assert {f"c{i}" for i in range(LAYERS)} <= set(said.kept) and "d" not in said.kept
    told = made.history[-1].options
    assert told[KEPT] == said.kept and told["integer nodes"] >= 1 and "times" not in json.dumps(told)
    products = [node for node in made.ir.graph if node.op_type in ("MatMul", "Gemm")]
    assert any(node.inputs[1].producer() is not None for node in products if node.inputs[1] is not None)
    again, told_again = clocked(model, IMAGES)
    assert again.to_bytes() == made.to_bytes() and told_again.earlier and told_again.kept == said.kept


def test_first_layers_that_gain_no_time_stay_float_for_what_they_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped convolutions that read noise of 1 with peaks of 500, in whose grid that is next to nothing: by the clock
    they stay float, and do so without being timed the second time. The product behind them is on integers."""
    model = build(tmp_path / "first.onnx", FIRST)
    peaks = {"x": np.tile(IMAGES["x"], (3, 1, 1, 1))}
    peaks["x"][:, 0, 8, 8] = 500 * (1 + np.random.default_rng(1).random(48))
    made, _ = clocked(model, peaks)
    told = made.history[-1].options
    assert told["float layers"] == ["c0", "c1"] and "d" not in told.get(KEPT, {})
    assert [step["kept"] for step in told["steps"] if step["step"].startswith("float layers: first")] == [True]
    known = [entry for entry in kept_files() if "paced" in entry["key"]]
    assert known and all(0 < entry["ratio"] < 1.05 for entry in known)
    monkeypatch.setattr(brief, "session", lambda *args: pytest.fail("it was timed before"))
    again, said = clocked(model, peaks)
    assert again.to_bytes() == made.to_bytes() and said.earlier


def test_what_never_pays_is_refused(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Exit 1 with the worst layers, nothing written; --allow-slower and --placement rules write it all the same."""
    model, out = build(tmp_path / "slow.onnx", SLOW), tmp_path / "small.onnx"
    np.savez(tmp_path / "calib.npz", **IMAGES)  # type: ignore[arg-type]
    command = ("compress", model, "-o", out, "--calibration", tmp_path / "calib.npz", "--ranges", "minmax")
    ran = cli(*command, "--placement", "clock")
    assert ran.code == 1 and not out.exists()
    for words in ("w8a8 does not pay on onnxruntime", "times as fast as fp32", "loses", "µs", "--allow-slower"):
        assert words in ran.err
    ran = cli(*command, "--placement", "clock", "--preset", "fast")
    assert ran.code == 1 and "loses" in ran.err, "a fast preset searches nothing, and has its verdict"
    ran = cli(*command, "--placement", "clock", "--allow-slower", "--json")
    told = json.loads(ran.out)["speed"]
    assert ran.code == 0 and told["answer"] == "slower" and told["interval (95 %)"][1] < 1
    assert told["timed earlier"] and told["threads"] == 1 and told["placements tried"] >= 1
    before = out.read_bytes()
    ran = cli(*command, "--placement", "rules", "--force", "--json")
    assert ran.code == 0 and "speed" not in json.loads(ran.out) and out.read_bytes() == before
    assert "slower than fp32" in cli(*command, "--placement", "clock", "--allow-slower", "--force").err


def test_killed_and_taken_up_again(tmp_path: Path) -> None:
    """Killed once something was timed, it goes on from there: what was timed stays, the answer is the same later."""
    model = build(tmp_path / "mixed.onnx", MIXED)
    np.savez(tmp_path / "calib.npz", **IMAGES)  # type: ignore[arg-type]
    command = [sys.executable, "-m", "edgerun", "compress", str(model), "-o", str(tmp_path / "small.onnx"), "--json"]
    command += ["--calibration", str(tmp_path / "calib.npz"), "--ranges", "minmax", "--placement", "clock"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any("layers " in known for known in kept_files()) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "small.onnx").exists()
    (before,) = kept_files()
    told = [json.loads(subprocess.run([*command, "--force"], check=True, capture_output=True).stdout) for _ in range(2)]
    (after,) = kept_files()
    assert after["rules"] == before["rules"] and after["layers "] == before["layers "] and after.keys() > before.keys()
    assert [t["speed"]["timed earlier"] for t in told] == [False, True]
    assert told[0] | {"speed": None} == told[1] | {"speed": None} and told[0][KEPT]


def test_a_cache_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]) -> None:
    """Damaged files are timed anew; where nothing can be written, that is said, and the answer is the same."""
    model = build(tmp_path / "wide.onnx", WIDE)
    clocked(model, ROWS)
    (path,) = (cache.folder() / "clock").iterdir()
    path.write_text("{")
    assert not clocked(model, ROWS)[1].earlier
    np.savez(tmp_path / "calib.npz", **ROWS)  # type: ignore[arg-type]
    monkeypatch.setenv("EDGERUN_CACHE", str(model))
    ran = cli("compress", model, "-o", tmp_path / "small.onnx", "--calibration", tmp_path / "calib.npz",
              "--placement", "clock")  # fmt: skip
    assert ran.code == 0 and "times as fast as fp32" in ran.out and "timings are not kept" in ran.err


def test_the_sizes_that_the_device_runs(tmp_path: Path) -> None:
    """An open dimension is timed as asked for, longer or shorter than the data's; else as the first sample is."""
    text = "(float[n,t,1024] x) => (float[n,t,10] y) { d = MatMul(x, square) r = Relu(d) y = MatMul(r, narrow) }"
    model, rows = build(tmp_path / "rows.onnx", text), data(3, 1024)
    for shapes, fed in (((), "1,3"), (("x:[1,1,1024]",), "1,1"), (("x:[2,7,1024]",), "2,7")):
        assert clocked(model, rows, shapes=shapes)[1].feed == (f"x:float32[{fed},1024]",)
    with pytest.raises(EdgerunError, match="does not fit"):
        clocked(model, rows, shapes=("x:[1,1,8]",))
    said: list[Speed] = []
    compress(model, scheme="w8a8_dynamic", placement="clock", clocked=said.append)
    assert said[0].answer == "not timed" and said[0].pays, "without data and with open sizes there is nothing to feed"


def test_what_is_timed_is_a_feed_that_can_be_cut() -> None:
    """Lengths in it stay within the sizes asked for; where no sample has such, noise of these sizes is timed."""
    named = TensorSpec("x", "float32", ("b", "t")), TensorSpec("n", "int32", ("b",))
    asked = TensorSpec("x", "float32", (1, 4)), TensorSpec("n", "int32", (1,))
    for lengths, taken in (((9, 3, 2), 3), ((9, 8, 7), None)):
        samples = [{"x": np.full((1, 10), n, np.float32), "n": np.array([n], np.int32)} for n in lengths]
        feed = feed_for(asked, open_data(samples, named, batch=1))
        assert feed["x"].shape == (1, 4) and feed["n"] < 4
        assert taken is None or (feed["n"] == taken and (feed["x"] == taken).all())


def test_schemes_that_promise_size_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERUN_PLACEMENT", "clock")  # asked for by --placement it is refused
    said: list[Speed] = []
    model = build(tmp_path / "wide.onnx", WIDE)
    compress(model, scheme="w8a16", clocked=said.append)
    assert not said and not kept_files()
    compress(model, scheme="w8a8_dynamic", clocked=said.append)
    assert said[0].answer == "faster"


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tmp_path / "slow.onnx", SLOW)
    with pytest.raises(EdgerunError, match="unknown placement 'clok'"):
        compress(model, calibration=IMAGES, placement="clok")
    monkeypatch.setenv("EDGERUN_PLACEMENT", "clock")
    with pytest.raises(GateFailed):
        compress(model, calibration=IMAGES, ranges="minmax", preset="fast")


@pytest.mark.parametrize(
    ("answer", "value", "pays"),
    [("faster", 1.2, True), ("slower", 0.985, False), ("no difference", 1.0, True), ("no difference", 0.97, False)],
)
def test_what_may_be_called_a_result(answer: str, value: float, pays: bool) -> None:
    from edgerun.measure.stats import Estimate
    from edgerun.metrics import Interval

    assert Speed(answer, Estimate(value, Interval(value - 0.1, value + 0.1))).pays == pays
