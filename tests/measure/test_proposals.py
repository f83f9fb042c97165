"""Proposals: from where time was lost to sets of nodes to leave in float."""

from __future__ import annotations

from edgerun.measure.attribution import ADDED, CONVERSION, INTEGER_SLOWER, Region
from edgerun.measure.proposals import TOO_LITTLE, Layer, layers, proposals
from edgerun.passes import NodeTime


def kernel(seconds: float, order: int, *, integer: bool = False, work: str = "compute") -> NodeTime:
    return NodeTime("k", "K", seconds, integer=integer, order=order, work=work)


def test_layers_count_what_is_there_for_them() -> None:
    """A layer's conversions are its own, its cause that of its worst part; nodes that cannot be kept are left out."""
    regions = [
        Region(("a", "relu"), "compute", 0, (kernel(5e-6, 0),), (kernel(3e-6, 1, integer=True),)),
        Region((), "convert", 0, (), (kernel(4e-6, 0, work="quantize"),)),
        Region(("b",), "compute", 2, (kernel(5e-6, 1),), (kernel(9e-6, 2, integer=True),)),
        Region(("softmax",), "compute", 3, (kernel(5e-6, 2),), (kernel(50e-6, 3),)),
    ]
    assert [(x.nodes, round(1e6 * x.saved), x.cause) for x in layers(regions, {"a", "b"})] == [
        (("b",), -4, INTEGER_SLOWER),
        (("a",), -2, CONVERSION),
    ]


def test_what_is_proposed() -> None:
    found = [Layer(("a",), -9e-6, ADDED), Layer(("b", "c"), -1e-6, CONVERSION), Layer(("d",), -1e-9, ADDED)]
    found += [Layer((n,), 1e-6, "") for n in "ef"]
    timid = proposals(found, 100e-6, 4, bold=False)
    losing = {"a": ADDED, "b": CONVERSION, "c": CONVERSION}
    assert timid == [losing, {"a": ADDED}, losing | {"d": ADDED}]
    bold = [frozenset(kept) for kept in proposals(found, 100e-6, 4, bold=True)]
    assert bold == [frozenset("abc"), frozenset("a"), frozenset("abcd"), frozenset("abcde")]
    assert proposals(found, 100e-6, 4, bold=True)[3]["e"] == TOO_LITTLE
    assert len(proposals(found, 100e-6, 1, bold=True)) == 1
    assert proposals([Layer(("e",), 1e-6, "")], 1e-4, 4, bold=False) == []
