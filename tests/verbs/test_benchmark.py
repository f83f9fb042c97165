"""`edgerun bench`: what it feeds, what it says, and that its outputs are real. No test depends on how fast it runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest

import edgerun
from edgerun.errors import EdgerunError
from edgerun.runtime import Options, Session
from edgerun.verbs import benchmark as module

ONE = Options(threads=1)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two repetitions a round are enough to see that everything runs."""
    monkeypatch.setattr("edgerun.measure.latency.MOST_REPETITIONS", 2)


@pytest.fixture
def b_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which b.onnx takes twice as long as the others, with 5 % noise."""

    def timed(models: Any, **options: Any) -> dict[str, list[np.ndarray]]:
        noise = np.random.default_rng(0).uniform(1, 1.05, (12, 2))
        for opener in models.values():
            with opener() as run:
                run()
        options["progress"](1.0)
        return {name: [1e-3 * (2 if "b.onnx" in name else 1) * noise] * 9 for name in models}

    monkeypatch.setattr(module, "in_sessions", timed)


@pytest.mark.usefixtures("b_is_slow")
def test_a_slow_model_is_not_an_improvement(place: Any, cli: Any) -> None:
    ran = cli("bench", place.a, place.b)
    assert ran.code == 0 and f"not an improvement: {place.b} is not faster than {place.a} (slower)" in ran.out
    assert "0.500 [" in ran.out and "random noise" in ran.err
    gate = cli("bench", place.a, place.b, "--threads", 1, "--must-be-faster", "--json")
    found = json.loads(gate.out)
    assert gate.code == 1 and "not an improvement" in gate.err
    assert [t["verdict"] for t in found["timings"]] == ["baseline", "slower"]
    assert found["timings"][1]["speedup"]["value"] == pytest.approx(0.5) and found["timings"][0]["speedup"] is None
    assert found["rounds"] == 108 and found["sessions"] == 9 and found["threads"] == 1 and found["batch"] == 1
    for t in found["timings"]:
        assert t["target"] == "onnxruntime" and t["runs"] == 216 and t["device"]


@pytest.mark.usefixtures("b_is_slow")
def test_only_a_faster_model_passes_the_gate(place: Any, cli: Any) -> None:
    faster = cli("bench", place.b, place.a, "--must-be-faster")
    assert faster.code == 0 and "faster" in faster.out and "not an improvement" not in faster.out
    assert cli("bench", place.a, place.a, "--must-be-faster").code == 1


@pytest.mark.usefixtures("fast")
def test_a_real_run_is_complete(place: Any, cli: Any) -> None:
    found = json.loads(cli("bench", place.a, place.b, "--rounds", 9, "--seconds", 1, "--threads", 1, "--json").out)
    for t in found["timings"]:
        assert t["runs"] == 18 and 0 < t["p50"]["value"] <= t["p90"]["value"] <= t["p99"]["value"]


@pytest.mark.usefixtures("fast")
def test_every_model_gets_the_bytes_of_the_first_batch(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    run = Session.run

    def spy(session: Session, feeds: Any) -> dict[str, np.ndarray]:
        seen.append(feeds["x"])
        return run(session, feeds)

    monkeypatch.setattr(Session, "run", spy)
    models = [place.a, place.a, f"{place.a}@openvino"]
    result = edgerun.benchmark(models, data=place.data, batch=5, options=ONE, rounds=9, seconds=1)
    assert all(np.array_equal(x, place.x[:5]) for x in seen)
    assert result.feed == ("x:float32[5,8]",) and result.notes == ()
    a, path = str(place.a), f"{place.a}@onnxruntime"
    assert [t.model for t in result.timings] == [path, f"{path}#2", f"{a}@openvino"]


@pytest.mark.usefixtures("fast")
def test_outputs_that_change_take_the_verdict_away(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Restless:
        """A session whose answers depend on how often it was asked."""

        def __init__(self, session: Session) -> None:
            self.session, self.asked, self.inputs = session, 0, session.inputs

        def run(self, feeds: Any) -> dict[str, np.ndarray]:
            self.asked += 1
            return {name: value + self.asked for name, value in self.session.run(feeds).items()}

        def __enter__(self) -> Restless:
            return self

        def __exit__(self, *_: object) -> None:
            self.session.close()

    def load(path: Any, *more: Any, **named: Any) -> Any:
        session = edgerun.load(path, *more, **named)
        return Restless(session) if path == place.b else session

    monkeypatch.setattr(module, "load", load)
    result = edgerun.benchmark([place.a, place.b], options=ONE, rounds=9, seconds=1)
    assert [t.verdict for t in result.timings] == ["baseline", "outputs differ"]
    assert result.not_faster == result.timings[1:]
    swapped = edgerun.benchmark([place.b, place.a], options=ONE, rounds=9, seconds=1)
    assert [t.verdict for t in swapped.timings] == ["outputs differ", "outputs differ"]


@pytest.mark.usefixtures("fast")
def test_shapes_come_from_the_user_or_from_another_model(place: Any) -> None:
    fixed = place.save(place.folder / "f.onnx", batch=3)
    quick: dict[str, Any] = {"options": ONE, "rounds": 9, "seconds": 1}
    assert edgerun.benchmark([place.a, fixed], **quick).feed == ("x:float32[3,8]",)
    for shape in ("[2,8]", "x:[2,8]"):
        assert edgerun.benchmark([place.a], shapes=[shape], **quick).feed == ("x:float32[2,8]",)
    for shapes, batch, message in (
        (["x:[2,9]"], None, "does not fit input 'x'"),
        (["z:[2,8]"], None, "there is no input 'z'"),
        ([], 4, "batch asked for does not fit"),
    ):
        with pytest.raises(EdgerunError, match=message):
            edgerun.benchmark([fixed], shapes=shapes, batch=batch, **quick)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.onnx"], "does not exist"),
        (["a.onnx", "r.onnx"], "different inputs"),
        (["a.onnx@nope"], "unknown target"),
        (["a.onnx", "--seconds", "0"], "--seconds"),
        (["a.onnx", "--rounds", "0"], "--rounds"),
        (["a.onnx", "--data", "d.npz", "--batch", "301"], "does not fill one batch"),
        (["a.onnx", "--input-shape", "x:[2"], "not understood"),
        ([], "Missing argument"),
    ],
)
def test_misuse(place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(place.folder)
    place.save(place.folder / "r.onnx", names=("z", "y"))
    ran = cli("bench", *arguments)
    assert ran.code == 2 and message in ran.err and ran.out == ""


def test_an_input_without_a_shape_is_no_scalar(place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime has it; `convert` gives the shape, in the words that are told."""
    monkeypatch.chdir(place.folder)
    bare = onnx.load(place.a)
    bare.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(bare, "bare.onnx")
    for more in ((), ("--input-shape", "x:[2,8]"), ("--data", "random:4")):
        ran = cli("bench", "bare.onnx", *more)
        assert ran.code == 2 and "input 'x' has no shape in the file" in ran.err and ran.out == ""
        assert "edgerun convert bare.onnx -o NAME.onnx --input 'x:float32[…]'" in ran.err
    told = cli("inspect", "bare.onnx")
    assert told.code == 2 and "'x' has no shape" in told.err
    assert "do: edgerun convert MODEL -o NAME.onnx --input 'x:float32[…]'" in told.err
    assert cli("convert", "bare.onnx", "-o", "whole.onnx", "--input", "x:float32[n,8]").code == 0
    assert cli("inspect", "whole.onnx").code == 0


@pytest.mark.usefixtures("fast")
def test_each_model_may_have_options_of_its_own(place: Any, cli: Any) -> None:
    """The same file twice, with other options; what was asked for stands in the result."""
    plain, other = Options(1), Options(1, {"graph_optimization_level": "off"})
    told = edgerun.benchmark([place.a, place.a], options=[plain, other], seconds=0.2, rounds=9)
    assert [t.model for t in told.timings] == [str(place.a), f"{place.a}#2"] and told.threads == 1
    assert [t.device.get("graph_optimization_level") for t in told.timings] == [None, "off"]
    for wrong in ([plain], [plain, Options(2)]):
        with pytest.raises(EdgerunError, match="options are for all|one number of threads"):
            edgerun.benchmark([place.a, place.a], options=wrong)
    ran = cli("bench", place.a, "--seconds", 0.2, "--rounds", 9, "--option", "graph_optimization_level=off")
    assert ran.code == 0 and "graph_optimization_level=off" in ran.out
    assert cli("bench", place.a, "--option", "no_such_option=1").code == 2
