"""The search behind `--max-drop`, on models whose true drops are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgerun.data import open_data
from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import paired_drop
from edgerun.model import Model, Step
from edgerun.verbs import search
from edgerun.verbs.compress import compress
from edgerun.verbs.looks import Looks
from edgerun.verbs.trials import Trial

GROUPS = 4096


def steered(wrong: int, shift: float = 0.0) -> Model:
    """Logits [n, 2] of group numbers [n, 1]: class 0, but class 1 for the first `wrong` of 4,096 groups; `shift` is
    added to all logits, which changes no answer."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (int64[n] g) => (float[n,2] y) { y = Gather(table, g) }"""
    proto = onnx.parser.parse_model(text)
    table = np.tile(np.array([1, 0], np.float32), (GROUPS, 1))
    table[:wrong] = [0, 1]
    table += np.float32(shift)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return Model.from_proto(proto)


def held(
    wrong: Callable[[int], int], seed: int, n: int = 1500, max_drop: float = 2.0, seen: int = 0
) -> dict[str, Any] | None:
    """The record of a search whose true drops are known, by how many of 6 layers are kept; None when refused.

    Calibration sees 16 groups from `seen` on, and a shift of the logits by each layer that is not kept.
    """
    original = steered(0)
    groups = np.random.default_rng(seed).integers(0, GROUPS, n)
    dev = open_data({"g": groups, "labels": np.zeros(n, np.int64)}, original.inputs, batch=100)
    calibration = open_data({"g": seen + np.arange(16)}, original.inputs, batch=16)

    def variant(kept: frozenset[str]) -> Model:
        return steered(wrong(len(kept)), 0.02 * (6 - len(kept))).with_step(Step("test/steered", "0"))

    try:
        made = search.hold(
            original,
            variant,
            dict.fromkeys("abcdef", 1 / 6),
            calibration,
            Looks(dev),
            target="onnxruntime",
            max_drop=max_drop,
        )
    except GateFailed:
        return None
    found: dict[str, Any] = made.history[-1].options["max drop"]
    return found


def test_a_drop_at_the_bound_is_seldom_called_below_it() -> None:
    """Every candidate loses exactly what it must not: 5 % of 24 runs may claim; 5 or more have p < 0.01."""
    at_bound = round(0.02 * GROUPS) + 1
    claimed = sum(held(lambda kept: at_bound, seed) is not None for seed in range(24))
    assert claimed <= 4


def test_the_ladder_is_climbed_down_as_far_as_it_holds() -> None:
    """Layers are equal; with 3 of 6 kept the true drop is 0.5 points, with fewer 10."""
    found = held(lambda kept: round(GROUPS * (0.005 if kept >= 3 else 0.1)), seed=0)
    assert found is not None and len(found["kept float"]) == 3
    assert [trial["kept"] for trial in found["trials"]] == [0, 5, 3]
    assert found["samples run"] < 3 * 1500


@pytest.mark.parametrize(("least", "trials"), [(3, [0, 3]), (5, [0, 3, 5])])
def test_the_descent_begins_where_calibration_foresees(least: int, trials: list[int]) -> None:
    """Calibration, on groups that no layer changes, foresees that the lowest rung will do: so it does, or, with fewer
    than 5 layers kept a drop of 10 points, it does not, and the ladder is climbed down from its safe end."""
    found = held(lambda kept: round(GROUPS * (0.005 if kept >= least else 0.1)), seed=0, seen=2048)
    assert found is not None and len(found["kept float"]) == least
    assert [trial["kept"] for trial in found["trials"]] == trials


def test_a_bound_is_held_wherever_the_descent_begins() -> None:
    """As above, with every candidate at the bound and the lowest rung foreseen."""
    at_bound = round(0.02 * GROUPS) + 1
    claimed = sum(held(lambda kept: at_bound, seed, seen=2048) is not None for seed in range(24))
    assert claimed <= 4


def test_what_cannot_be_held_says_so(tmp_path: Path) -> None:
    original = steered(0)
    dev = open_data({"g": np.arange(GROUPS), "labels": np.zeros(GROUPS, np.int64)}, original.inputs, batch=512)
    calibration = open_data({"g": np.arange(16)}, original.inputs, batch=16)
    with pytest.raises(GateFailed, match="cannot be held, whatever stays in float"):
        search.hold(
            original, lambda kept: steered(1000), {"a": 0.5, "b": 0.5}, calibration, Looks(dev),
            target="onnxruntime", max_drop=2,
        )  # fmt: skip
    with pytest.raises(EdgerunError, match="has no labels"):
        Looks(calibration)


def test_a_drop_seen_above_the_bound_is_no_want_of_samples() -> None:
    """3 % are lost, of which the first look says no more than that 2 will hardly be."""
    original = steered(0)
    groups = np.random.default_rng(0).integers(0, GROUPS, 1500)
    dev = open_data({"g": groups, "labels": np.zeros(1500, np.int64)}, original.inputs, batch=1)
    calibration = open_data({"g": np.arange(16)}, original.inputs, batch=16)
    with pytest.raises(GateFailed, match=r"the drop seen, \d\.\d\d points, lies above it") as refused:
        search.hold(
            original, lambda kept: steered(round(0.03 * GROUPS)), dict.fromkeys("abc", 1 / 3), calibration, Looks(dev),
            target="onnxruntime", max_drop=2,
        )  # fmt: skip
    said = str(refused.value)
    assert "of 1500 labelled samples" in said and "with 2 of 3 layers in float" in said
    assert "do: another --scheme, or a larger --max-drop" in said


@pytest.mark.parametrize("shape", ["n, 1", "n"])
def test_an_output_of_one_number_has_no_top_1(shape: str) -> None:
    """Whatever its labels are: floats of a regression among them."""
    rows = "y = MatMul(x, w)" if "1" in shape else "m = MatMul(x, w) y = Squeeze(m, one)"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> net (float[n,8] x) => (float[{shape}] y) {{ {rows} }}"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 1), np.float32), "w"))
    if "1" not in shape:
        proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    x = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    for labels in (x.sum(axis=1), (x.sum(axis=1) > 0).astype(np.int64)):
        with pytest.raises(EdgerunError, match="has no classes to choose from") as refused:
            compress(Model.from_proto(proto), calibration={"x": x[:40]}, max_drop=2,
                     labelled={"x": x[40:], "labels": labels[40:]})  # fmt: skip
        assert "--metric binary" in str(refused.value)


def test_the_interval_is_evals() -> None:
    trial = Trial(("a",), 1000, 12, 5, "yes")
    assert trial.interval == paired_drop(12, 5, 1000)
