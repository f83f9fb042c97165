"""`edgerun why-slow`: all that ran is aligned, and what is said adds up. No test depends on how fast anything runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.measure.accounting import BETWEEN
from edgerun.measure.attribution import CONVERSION, REMOVED
from edgerun.measure.stats import Estimate
from edgerun.metrics import Interval
from edgerun.runtime import Engine, Options
from edgerun.verbs.rounds import measured
from edgerun.verbs.why_slow import RESTLESS, Hint, WhySlow, why_slow

ONE = Options(threads=1)
SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml"}


def save_net(path: Path) -> Path:
    """image [n, 3, 16, 16] -> two Convs with Relu and a residual Add, Softplus in between, GlobalAveragePool, Gemm."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((0.2 * generator.standard_normal(shape)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "first/Relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"], "sum"),
        helper.make_node("Softplus", ["sum"], ["soft"], "soft"),
        helper.make_node("Conv", ["soft", "w3"], ["c3"], "third"),
        helper.make_node("GlobalAveragePool", ["c3"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w4"], ["scores"], "classify"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5])],
        [weight("w1", 16, 3, 3, 3), weight("w2", 16, 16, 3, 3), weight("w3", 16, 16, 1, 1), weight("w4", 16, 5)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module", params=sorted(SUFFIX))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A float model, its INT8 one, and the target."""
    if reason := registry.target(request.param, usable=False).available():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(request.param)
    fp32, int8 = save_net(folder / "net.onnx"), folder / f"small{SUFFIX[request.param]}"
    images = np.random.default_rng(1).standard_normal((16, 3, 16, 16)).astype(np.float32)
    edgerun.compress(fp32, target=request.param, calibration={"image": images}, output=int8)
    return fp32, int8, request.param


@pytest.fixture(scope="module")
def result(pair: tuple[Path, Path, str]) -> WhySlow:
    """Of two samples, which neither file tells as its usual number."""
    return why_slow(pair[0], pair[1], target=pair[2], options=ONE, seconds=0.5, batch=2)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three profiled runs a session are enough to see that everything runs."""
    monkeypatch.setattr("edgerun.verbs.rounds.FEWEST_RUNS", 3)


def test_everything_that_runs_is_in_one_part(pair: tuple[Path, Path, str], result: WhySlow) -> None:
    feed = {"image": np.zeros((2, 3, 16, 16), np.float32)}
    found, known = result.difference, Options(1, usual={"image": (2, 3, 16, 16)})
    for path, kernels in zip(pair[:2], ([p.before for p in found.parts], [p.after for p in found.parts]), strict=True):
        ran = registry.target(pair[2]).profile(Engine(pair[2], path), [feed] * 3, known)
        told = [kernel.order for part in kernels for kernel in part]
        assert len(told) == len(set(told))
        assert {k.order for k in ran if k.seconds > 2e-6} <= set(told)


def test_the_numbers_add_up(result: WhySlow) -> None:
    found = result.difference
    attributed, between = found.attributed.value, found.between.value
    for whole in (
        sum(part.saved.value for part in found.parts) + between,
        sum(e.value for e in found.causes.values()),
        sum(e.value for e in found.layers.values()) + between,
        found.measured.value - found.unexplained.value,
        sum(p.before_seconds - p.after_seconds for p in found.parts) + between,
        sum(sign * (w.kernels.value + w.between.value) for sign, w in zip((1, -1), found.wholes, strict=True)),
    ):
        assert whole == pytest.approx(attributed, abs=1e-12)
    measured = found.measured
    assert measured.interval.low <= measured.value <= measured.interval.high
    if result.waits <= RESTLESS:  # else the difference is about CPU time, which no other work lengthens
        assert [whole.run for whole in found.wholes] == [result.fp32_p50, result.int8_p50]
    for part in found.parts:
        assert sum(part.causes.values()) == pytest.approx(part.saved.value, abs=1e-12) and part.cause in part.causes
        assert part.saved.interval.low <= part.saved.value <= part.saved.interval.high
    assert result.sessions == 9 and result.profiled_runs >= 90 and result.runs >= 9


def test_what_the_runtime_takes_between_kernels_is_a_part_of_its_own(result: WhySlow) -> None:
    """Of every kernel: between 20 ns and 50 µs, which no CPU and no load make of it, and no more in one model."""
    found = result.difference
    assert found.dispatched and found.causes[BETWEEN] == found.between
    for whole, kernels in zip(
        found.wholes, ([p.before for p in found.parts], [p.after for p in found.parts]), strict=True
    ):
        assert whole.nodes == sum(map(len, kernels)) and whole.call.value > 0
        assert 20e-9 < whole.between.value / whole.nodes < 50e-6
        parts = (whole.kernels, whole.between, whole.call, whole.rest)
        assert sum(part.value for part in parts) == pytest.approx(whole.run.value)
    more = found.wholes[1].nodes - found.wholes[0].nodes
    assert any(f"{abs(more)} nodes {'more' if more > 0 else 'fewer'}" in line for line in result.summary()) or not more


def test_a_target_that_runs_no_chain_is_told(result: WhySlow) -> None:
    found = replace(result, difference=replace(result.difference, dispatched=False))
    assert any("between kernels: not measured" in line for line in found.summary())


def test_kernels_that_are_slower_under_the_profiler_are_told(result: WhySlow) -> None:
    below = Estimate(-2e-6, Interval(-3e-6, -1e-6, 0.95))
    wholes = (replace(result.difference.wholes[0], rest=below), result.difference.wholes[1])
    line = replace(result, difference=replace(result.difference, wholes=wholes)).summary()[1]
    assert line.endswith("rest -0.002 [-0.003, -0.001] ms: slower under the profiler than without it")


def test_layers_meet_their_float_selves(result: WhySlow) -> None:
    parts = [p for p in result.difference.parts if p.work == "compute"]
    for node in ("second", "third", "classify", "soft"):
        (part,) = [p for p in parts if node in p.nodes]
        assert part.before and part.after, node
        assert part.integer == (node != "soft"), node
    assert not [p for p in parts if p.cause == REMOVED and len(p.nodes) > 1]
    assert CONVERSION in result.difference.causes, "Softplus runs in float between integers"


def test_the_command_prints_json(pair: tuple[Path, Path, str], cli: Any) -> None:
    """Without --target it is the one that the quantized file's kind runs on."""
    ran = cli("why-slow", pair[0], pair[1], "--threads", 1, "--seconds", 0.1, "--batch", 2, "--json")
    found = json.loads(ran.out)
    assert ran.code == 0 and "random noise" in ran.err
    assert found["target"] == pair[2] and found["feed"] == ["image:float32[2,3,16,16]"] and found["device"]
    nodes = {node for part in found["difference"]["parts"] for node in part["nodes"]}
    assert {"first", "second", "third", "classify"} <= nodes


def test_the_command_prints_tables(
    pair: tuple[Path, Path, str], result: WhySlow, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgerun.verbs.why_slow.why_slow", lambda *_, **__: result)
    ran = cli("why-slow", pair[0], pair[1], "--top", 3)
    assert ran.code == 0 and f"3 of {len(result.difference.parts)} regions" in ran.out
    assert "unexplained" in ran.out and "between kernels" in ran.out
    assert all(line in ran.out for line in result.summary())
    assert len(cli("why-slow", pair[0], pair[1], "--top", 0).out.splitlines()) < len(ran.out.splitlines())


def test_one_rule_says_whether_there_is_a_difference(
    pair: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine sessions whose p50s differ as much as they scatter: a ratio of 1 is within where nothing is explained."""
    found = {}
    for name, shifts in (("none", (3, -2, 1, -1, 2, -3, 4, -2, 1)), ("some", (3, 1, 1, 1, 2, 3, 4, 2, 1))):
        sessions = iter(shifts)

        def shifted(*arguments: Any, sessions: Any = sessions) -> Any:
            own = measured(*arguments)
            base, more = np.full((3, 4), 1e-3), next(sessions) * 1e-6
            return replace(own, timed=(base, base - more), computed=(base, base - more))

        monkeypatch.setattr("edgerun.verbs.why_slow.measured", shifted)
        found[name] = why_slow(pair[0], pair[1], target=pair[2], options=ONE, seconds=0.1)
    none, some = found["none"], found["some"]
    assert none.difference.explained is None and none.speedup.interval.low < 1 < none.speedup.interval.high
    assert none.summary()[-1].endswith("nothing to explain, no difference could be measured")
    assert some.difference.explained is not None and some.speedup.interval.low > 1
    told = replace(none, waits=3.0).summary()[-1]
    assert told.endswith("could be measured in CPU time (other work holds it: a run waits 3.0 times)")


def test_refusals(pair: tuple[Path, Path, str], place: Any, cli: Any) -> None:
    fp32, int8, target = pair
    other = "openvino" if target == "onnxruntime" else "onnxruntime"
    flat = place.save(place.folder / "flat.onnx", names=("image", "scores"))
    for arguments, message in (
        ((place.a, int8, "--target", target), "different inputs"),
        ((flat, int8, "--target", target), "the models have different inputs"),
        ((f"{fp32}@{other}", f"{int8}@{target}"), "on two targets"),
        ((fp32, fp32.parent / "absent.onnx"), "does not exist"),
        ((fp32, int8, "--target", "reference"), "does not read" if target == "openvino" else "the reference"),
        ((fp32, int8, "--target", target, "--input-shape", "image:[1,4,16,16]"), "does not fit"),
        ((fp32, int8, "--target", target, "--device", "raspberry-pi-4"), "this machine is not raspberry-pi-4"),
    ):
        ran = cli("why-slow", *arguments, "--seconds", 0.1)
        assert ran.code in (2, 3) and message in ran.err and ran.out == "", arguments
    swapped = cli("why-slow", int8, fp32, "--target", target, "--seconds", 0.1)
    assert swapped.code == 2 and "first model is the quantized one" in swapped.err


def test_hints_say_that_they_are_estimates() -> None:
    assert "estimated" in str(Hint("keep float", "layer", 2e-6, "reorder")) and "--keep-float 'layer'" in str(
        Hint("keep float", "layer", 2e-6, "reorder")
    )
    assert "at most" in str(Hint("stays float", "MatMul", 2e-6, ""))
