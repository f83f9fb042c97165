"""A sample of ONNX's conformance cases, and what the bench makes of crashes."""

from __future__ import annotations

import random

import pytest

from bench import conformance
from bench.conformance_cases import Case, cases
from edgerun import registry

SAMPLE = 60
DYING = """
import os, signal, sys
from bench import conformance
def outcome(case, target, drawn):
    if case.name == {dies!r}:
        os.kill(os.getpid(), signal.SIGFPE)
    if case.name == {hangs!r}:
        signal.pause()
    return "pass", ""
conformance.outcome = outcome
conformance.work(sys.argv[1], int(sys.argv[2]), False)
"""
TARGETS = [n for n in ("onnxruntime", "openvino") if registry.target(n, usable=False).available() is None]


@pytest.fixture(scope="module")
def every() -> list[Case]:
    """All cases; making them takes some seconds."""
    return cases()


def test_the_suite_is_the_one_that_is_claimed(every: list[Case]) -> None:
    assert len(every) == len({case.name for case in every}) and 1500 <= len(every) <= 1700
    assert all(case.sets and case.rtol > 0 for case in every)


@pytest.mark.parametrize("target", TARGETS)
def test_a_sample_passes_or_is_refused_by_name(every: list[Case], target: str) -> None:
    chosen = random.Random(7).sample(every, SAMPLE)
    found = {case.name: (kind, reason) for case, kind, reason in conformance.run(chosen, target)}
    assert len(found) == SAMPLE
    assert not {name: told for name, told in found.items() if told[0] in ("wrong", "error", "crash")}
    assert sum(kind == "pass" for kind, _ in found.values()) >= 0.75 * SAMPLE


def test_auto_passes_what_either_passes(every: list[Case]) -> None:
    names = ("test_bitcast_int8_to_uint8", "test_roialign_mode_max", "test_roialign_aligned_true", "test_abs")
    chosen = [case for case in every if case.name in names]
    found = {t: {c.name for c, kind, _ in conformance.run(chosen, t) if kind == "pass"} for t in (*TARGETS, "auto")}
    assert found["auto"] >= set.union(*(found[target] for target in TARGETS))


def test_children_begin_anew(every: list[Case]) -> None:
    """A process that is split off one that has run OpenVINO waits for ever for threads that it has not."""
    import edgerun

    if "openvino" not in TARGETS:
        pytest.skip("openvino is not here")
    case = next(case for case in every if case.name == "test_abs")
    with edgerun.load(case.model, "openvino") as session:
        session.run({session.inputs[0].name: case.sets[0][0][0]})
    ((_, kind, reason),) = conformance.run([case], "openvino")
    assert (kind, reason) == ("pass", "")


def test_a_crash_is_one_case_and_the_rest_go_on(every: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "CHILD", DYING.format(dies=every[1].name, hangs=every[3].name))
    monkeypatch.setattr(conformance, "SECONDS", 10.0)  # which the child's imports are part of
    found = [(kind, reason) for _, kind, reason in conformance.run(every[:5], "onnxruntime")]
    assert [kind for kind, _ in found] == ["pass", "crash", "pass", "crash", "pass"]
    assert "SIGFPE" in found[1][1] and "no answer" in found[3][1]


def test_tolerances() -> None:
    import numpy as np

    case = Case("x", "X", b"", (), rtol=1e-3, atol=1e-7)
    want = np.array([1000.0, 0.0, np.inf])
    assert conformance.judged(case, {"y": want * 1.0}, [want])[0] == "pass"
    for error, kind in ((0.5, "rounding"), (2.0, "wrong"), (np.nan, "wrong")):
        got = np.array([1000.0, error, np.inf])
        assert conformance.judged(case, {"y": got}, [want])[0] == kind
    assert conformance.judged(case, {"y": want.astype(np.float32)}, [want])[0] == "wrong"
    codes = np.array([5], np.uint8)
    assert conformance.judged(case, {"y": codes + np.uint8(1)}, [codes])[0] == "rounding"
    assert conformance.judged(case, {"y": codes + np.uint8(2)}, [codes])[0] == "wrong"
    assert conformance.judged(case, {"y": [codes, codes]}, [[codes, codes]])[0] == "pass"


def test_two_steps_of_bfloat16_are_rounding() -> None:
    import ml_dtypes
    import numpy as np

    case = Case("x", "X", b"", (), rtol=1e-3, atol=1e-7)
    want = np.array([0.75, 0.1], ml_dtypes.bfloat16)
    for steps, kind in ((0, "pass"), (1, "rounding"), (2, "rounding"), (3, "wrong")):
        got = np.array([0.75 + steps * 2.0**-8, 0.1], ml_dtypes.bfloat16)
        assert conformance.judged(case, {"y": got}, [want])[0] == kind


def test_operators_that_stood_in_doubt(every: list[Case]) -> None:
    """Cases that once were "wrong, refused", or refused without their operator's name."""
    kinds = {
        "test_if_opt": "pass", "test_maxunpool_export_with_output_shape": "pass",
        "test_resize_downsample_scales_cubic_align_corners": "unsupported", "test_training_dropout": "unsupported",
        "test_bernoulli_seed": "unsupported", "test_convinteger_with_padding": "unsupported",
        "test_reduce_max_empty_set_bool": "unsupported",
    }  # fmt: skip
    found = {case.name: kind for case, kind, _ in conformance.run([c for c in every if c.name in kinds], "onnxruntime")}
    assert found == kinds
