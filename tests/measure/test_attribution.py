"""Aligning kernels and giving their difference to causes: nothing lost, nothing twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.errors import EdgerunError, Unsupported
from edgerun.measure import attribution
from edgerun.measure.accounting import Profiled, account
from edgerun.measure.attribution import (
    ADDED,
    CONVERSION,
    FUSION_LOST,
    INTEGER_FASTER,
    INTEGER_SLOWER,
    REMOVED,
    REORDER,
    STAYS_FLOAT,
    Region,
    align,
    causes,
    totals,
)
from edgerun.passes import NodeTime


def kernel(
    order: int,
    seconds: float,
    covers: str = "",
    reads: tuple[int, ...] = (),
    *,
    integer: bool = False,
    work: str = "compute",
) -> NodeTime:
    return NodeTime(f"k{order}", "Op", seconds, "", integer, order, work, tuple(covers.split()), reads)


def found(regions: list[Region], node: str) -> Region:
    (region,) = [r for r in regions if node in r.nodes and r.work == "compute"]
    return region


@st.composite
def networks(draw: st.DrawFn) -> list[NodeTime]:
    """Up to 12 kernels that read earlier ones and cover any of 8 nodes."""
    kernels = []
    for order in range(draw(st.integers(1, 12))):
        work = draw(st.sampled_from(["compute", "compute", "quantize", "dequantize", "reorder"]))
        reads = draw(st.sets(st.integers(0, order - 1), max_size=3)) if order else set()
        nodes = draw(st.sets(st.sampled_from("abcdefgh"), max_size=3))
        kernels.append(
            kernel(order, draw(st.floats(0, 1e-2)), " ".join(sorted(nodes)), tuple(sorted(reads)),
                   integer=draw(st.booleans()), work=work)
        )  # fmt: skip
    return kernels


@given(networks(), networks())
def test_every_kernel_is_in_one_region_and_every_second_in_one_cause(
    before: list[NodeTime], after: list[NodeTime]
) -> None:
    regions = align(before, after)
    assert sorted(k.order for r in regions for k in r.before) == [k.order for k in before]
    assert sorted(k.order for r in regions for k in r.after) == [k.order for k in after]
    difference = sum(k.seconds for k in before) - sum(k.seconds for k in after)
    assert sum(totals(regions).values()) == pytest.approx(difference, abs=1e-12)
    for region in regions:
        assert sum(causes(region).values()) == pytest.approx(region.saved, abs=1e-12)
        assert len({k.work == "compute" for k in (*region.before, *region.after)}) == 1
    compute = [{n for k in (*r.before, *r.after) for n in k.covers} for r in regions if r.work == "compute"]
    assert sum(map(len, compute)) == len(set().union(*compute)), "a node in two regions"


def test_a_fusion_on_one_side_joins_the_kernels_of_the_other() -> None:
    before = [kernel(0, 10.0, "conv relu"), kernel(1, 5.0, "add", (0,)), kernel(2, 7.0, "fc", (1,))]
    after = [kernel(0, 4.0, "conv", integer=True), kernel(1, 1.0, "relu add", (0,)), kernel(2, 2.0, "fc", (1,))]
    regions = align(before, after)
    assert [[k.order for k in r.before] for r in regions] == [[0, 1], [2]]
    assert found(regions, "conv").saved == 10.0 and found(regions, "fc").saved == 5.0


def test_conversions_and_reorders_stay_apart_at_the_layer_that_they_are_for() -> None:
    before = [kernel(0, 10.0, "conv"), kernel(1, 3.0, "mean", (0,))]
    after = [
        kernel(0, 1.0, "conv/Q", work="quantize"),
        kernel(1, 2.0, "", (0,), work="reorder"),
        kernel(2, 4.0, "conv", (1,), integer=True),
        kernel(3, 0.5, "conv/DQ", (2,), work="dequantize"),
        kernel(4, 3.0, "mean", (3,)),
    ]
    regions = align(before, after)
    layers = attribution.layers(regions)
    layer = layers[found(regions, "conv").layer]
    assert {r.work: r.saved for r in layer} == {"convert": -1.5, "reorder": -2.0, "compute": 6.0}
    assert [r.work for r in layers[found(regions, "mean").layer]] == ["compute"]
    assert totals(regions) == {CONVERSION: -1.5, REORDER: -2.0, INTEGER_FASTER: 6.0, STAYS_FLOAT: 0.0}


def test_a_kernel_without_a_node_goes_where_its_result_goes() -> None:
    before = [kernel(0, 1.0, "a"), kernel(1, 2.0, "", (0,)), kernel(2, 3.0, "b", (1,)), kernel(3, 4.0, "", (2,))]
    regions = align(before, [kernel(0, 1.0, "a"), kernel(1, 3.0, "b", (0,))])
    assert [k.order for k in found(regions, "b").before] == [1, 2, 3], "behind the last node: with the one before"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([9.0], [(4.0, True)], {INTEGER_FASTER: 5.0}),
        ([4.0], [(9.0, True)], {INTEGER_SLOWER: -5.0}),
        ([4.0], [(4.5, False)], {STAYS_FLOAT: -0.5}),
        ([9.0], [(4.0, True), (1.0, False), (2.0, False)], {INTEGER_FASTER: 5.0, FUSION_LOST: -3.0}),
        ([9.0], [(9.0, False), (1.0, False)], {STAYS_FLOAT: 0.0, FUSION_LOST: -1.0}),
        ([9.0], [], {REMOVED: 9.0}),
        ([], [(2.0, False)], {ADDED: -2.0}),
    ],
)
def test_causes(before: list[float], after: list[tuple[float, bool]], expected: dict[str, float]) -> None:
    region = Region(
        ("n",),
        "compute",
        0,
        tuple(kernel(i, seconds, "n") for i, seconds in enumerate(before)),
        tuple(kernel(i, seconds, "n", integer=integer) for i, (seconds, integer) in enumerate(after)),
    )
    assert causes(region) == pytest.approx(expected)
    assert attribution.main_cause(region) == max(expected, key=lambda cause: abs(expected[cause]))


def test_two_kernels_at_one_place_are_refused() -> None:
    with pytest.raises(EdgerunError, match="share a place"):
        align([kernel(0, 1.0, "a"), kernel(0, 2.0, "b")], [])


BEFORE = [kernel(0, 10.0, "a"), kernel(1, 6.0, "b", (0,))]
AFTER = [kernel(0, 1.0, "a/Q", work="quantize"), kernel(1, 4.0, "a", (0,), integer=True), kernel(2, 6.0, "b", (1,))]


def scaled(kernels: list[NodeTime], factor: float) -> list[NodeTime]:
    return [replace(k, seconds=k.seconds * factor) for k in kernels]


def test_the_share_is_what_kernels_save_of_what_was_measured() -> None:
    """Kernels save 5 of 16 s, and the runtime around them costs 1.0 s before and 0.75 s after: 5/5.25 is explained."""
    factors = [0.9, 0.95, 1.0, 1.0, 1.0, 1.0, 1.0, 1.05, 1.1]
    sessions = [Profiled((17.0 * f, 11.75 * f), (scaled(BEFORE, f), scaled(AFTER, f))) for f in factors]
    told = account(sessions)
    assert told.measured.value == pytest.approx(5.25) and told.attributed.value == pytest.approx(5.0)
    assert told.explained is not None and told.explained.value == pytest.approx(5 / 5.25)
    assert told.explained.interval.low == pytest.approx(5 / 5.25) == told.explained.interval.high
    assert told.unexplained.value == pytest.approx(0.25)
    assert told.attributed.interval.low == pytest.approx(0.95 * 5)  # the second smallest of nine
    assert sum(part.saved.value for part in told.parts) == pytest.approx(told.attributed.value)
    assert {c: e.value for c, e in told.causes.items()} == pytest.approx(
        {INTEGER_FASTER: 6.0, STAYS_FLOAT: 0.0, CONVERSION: -1.0}
    )


def test_one_disturbed_session_moves_nothing() -> None:
    calm = Profiled((17.0, 11.75), (BEFORE, AFTER))
    disturbed = Profiled((40.0, 11.75), (scaled(BEFORE, 3.0), AFTER))
    assert account([calm] * 8 + [disturbed]).attributed.value == account([calm] * 9).attributed.value


def test_a_kernel_that_a_session_did_not_see_took_nothing_there() -> None:
    calm = Profiled((17.0, 11.75), (BEFORE, AFTER))
    without = Profiled((17.0, 11.75), (BEFORE[:1], AFTER))
    assert account([without] * 4 + [calm] * 5).attributed.value == pytest.approx(5.0)
    assert account([without] * 5 + [calm] * 4).attributed.value == pytest.approx(-1.0)


def test_no_share_where_no_difference_was_measured() -> None:
    sessions = [Profiled((10.0, 10.0 + d), (BEFORE, AFTER)) for d in (-2, -1, -1, 0, 0, 1, 1, 1, 2)]
    assert account(sessions).explained is None


def test_refusals() -> None:
    def sessions(before: list[NodeTime], after: list[NodeTime]) -> list[Profiled]:
        return [Profiled((2.0, 1.0), (before, after))] * 9

    with pytest.raises(EdgerunError, match="first model is the quantized one"):
        account(sessions(AFTER, BEFORE))
    with pytest.raises(EdgerunError, match="no named node in common"):
        account(sessions(BEFORE, [kernel(0, 1.0, "c"), kernel(1, 1.0, "d", (0,))]))
    other = Profiled((2.0, 1.0), (BEFORE, [replace(AFTER[0], op="Other"), *AFTER[1:]]))
    with pytest.raises(Unsupported, match="other kernels in one session"):
        account([*sessions(BEFORE, AFTER), other])


def test_kernels_that_change_places_are_told_apart_by_what_they_compute() -> None:
    """ONNX Runtime orders what does not hang together anew in every session, and numbers reorders by its own count."""
    ops = {"reorder": "ReorderOutput", "mean": "GlobalAveragePool", "conv": "Conv"}
    one = [
        replace(kernel(0, 1.0, "stem"), op="Conv"),
        replace(kernel(1, 4.0, "mean", (0,)), op=ops["mean"]),
        replace(kernel(2, 2.0, "", (0,), work="reorder"), op=ops["reorder"]),
        replace(kernel(3, 3.0, "conv", (1, 2)), op=ops["conv"]),
    ]
    other = [
        one[0],
        replace(one[2], order=1, node="made up"),
        replace(one[1], order=2),
        replace(one[3], reads=(2, 1)),
    ]
    after = [replace(k, seconds=k.seconds / 2, integer=True) for k in one]
    sessions = [Profiled((10.0, 5.0), (before, after)) for before in [one] * 5 + [other] * 4]
    told = account(sessions)
    assert told.attributed.value == pytest.approx(5.0) and told.attributed.interval.low == pytest.approx(5.0)
    [mean] = [part for part in told.parts if part.nodes == ("mean",)]
    assert [mean.before_seconds, mean.after_seconds] == pytest.approx([4.0, 2.0])
