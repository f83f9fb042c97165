"""What a runtime takes between kernels is told apart from them, and nothing is told twice."""

from __future__ import annotations

import pytest

from edgerun.measure.accounting import BETWEEN, Dispatch, Profiled, account
from edgerun.passes import NodeTime


def kernel(order: int, seconds: float, *, dispatched: bool, integer: bool = False) -> NodeTime:
    return NodeTime(f"k{order}", "Op", seconds, "", integer, order, covers=("n",), dispatched=dispatched)


def sessions(dispatched: bool, dispatch: Dispatch | None) -> list[Profiled]:
    """A float kernel of 10 µs against three on integers of 2 µs, at 1 µs a node, in runs of 7 µs a call and 3 or 1 µs
    that nobody knows of; nine times, in every second one all a tenth slower."""
    found = []
    for number in range(9):
        slow = 1.1 if number % 2 else 1.0
        told = [(seconds + (1e-6 if dispatched else 0.0)) * slow for seconds in (10e-6, 2e-6)]
        before = [kernel(0, told[0], dispatched=dispatched)]
        after = [kernel(order, told[1], dispatched=dispatched, integer=True) for order in range(3)]
        known = None if dispatch is None else Dispatch(dispatch.node * slow, dispatch.call * slow)
        found.append(Profiled((21e-6 * slow, 17e-6 * slow), (before, after), known))
    return found


@pytest.mark.parametrize("dispatched", [False, True])
def test_a_node_costs_what_it_does_whether_or_not_kernels_hold_it(dispatched: bool) -> None:
    found = account(sessions(dispatched, Dispatch(1e-6, 7e-6)))
    assert found.dispatched and found.between.value == pytest.approx(-2e-6) == found.causes[BETWEEN].value
    assert found.attributed.value == pytest.approx(4e-6 - 2e-6) and found.measured.value == pytest.approx(4e-6)
    assert found.explained is not None and found.explained.value == pytest.approx(0.5)
    assert found.unexplained.value == pytest.approx(2e-6)
    told = [(w.nodes, w.kernels.value, w.between.value, w.call.value, w.rest.value) for w in found.wholes]
    assert told[0] == pytest.approx((1, 10e-6, 1e-6, 7e-6, 3e-6))
    assert told[1] == pytest.approx((3, 6e-6, 3e-6, 7e-6, 1e-6))


def test_what_nobody_measured_is_nothing() -> None:
    found = account(sessions(False, None))
    assert not found.dispatched and found.between.value == 0 and BETWEEN not in found.causes
    assert found.attributed.value == pytest.approx(4e-6)


def test_a_kernel_that_holds_less_than_a_node_is_none() -> None:
    """All of it is what it took to come to it: never less than nothing."""
    found = account(sessions(True, Dispatch(5e-6, 0.0)))
    assert found.wholes[1].kernels.value == 0 and found.wholes[1].between.value == pytest.approx(9e-6)
