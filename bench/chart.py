"""Results as one picture: what a quantization changed against how fast it became, per model and target, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

Result = dict[str, Any]
WIDTH, HEIGHT, MARGIN, GAP = 380, 230, 64, 40  # pixels: a panel's plot, its left and bottom edge, its top and right
HEAD = 80  # pixels for the names
FLOOR = 1e-3  # the least share of changed answers that is drawn; log scales have no zero
OURS, OTHERS = (
    "#c2410c",
    (
        "#1d4ed8",
        "#0f766e",
        "#7e22ce",
        "#4d7c0f",
        "#be185d",
        "#475569",
        "#a16207",
        "#0891b2",
        "#111827",
        "#65a30d",
        "#eab308",
    ),
)


@dataclass(frozen=True)
class Point:
    """One variant: `speed` as times fp32 with its interval, `changed` the share 0..1 of answers unlike fp32's."""

    name: str
    speed: float
    low: float
    high: float
    changed: float


def points(told: Result) -> list[Point]:
    """The variants of one model on one target that ran; fp32 itself is no point."""
    rows = told.get("latency", {}).get("rows", {})
    return [
        Point(name, row["speedup"]["value"], row["speedup"]["low"], row["speedup"]["high"], 1 - score["agreement"])
        for name, score in told["accuracy"].items()
        if name != "fp32" and (row := rows.get(name)) and row["speedup"]
    ]


def svg(results: list[Result]) -> str:
    """One panel per model and target that was timed, models below each other; an empty string when there are none."""
    panels = [
        (r["model"], target, found) for r in results for target, told in r["targets"].items() if (found := points(told))
    ]
    if not panels:
        return ""
    models, targets = _in_order(m for m, _, _ in panels), _in_order(t for _, t, _ in panels)
    names = sorted({p.name for _, _, found in panels for p in found if not p.name.startswith("edgerun")})
    colours = {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(names)}
    width, height = len(targets) * (WIDTH + MARGIN + GAP), len(models) * (HEIGHT + MARGIN + GAP) + HEAD
    size = {"width": str(width), "height": str(height), "viewBox": f"0 0 {width} {height}"}
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, "font-family": "sans-serif"})
    _put(root, "rect", width=width, height=height, fill="white")
    _legend(root, width, {"edgerun": OURS, **colours})
    for model, target, found in panels:
        left = targets.index(target) * (WIDTH + MARGIN + GAP) + MARGIN
        top = models.index(model) * (HEIGHT + MARGIN + GAP) + HEAD + GAP
        _panel(root, left, top, f"{model} on {target}", found, colours)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _put(parent: ElementTree.Element, tag: str, text: str = "", **attributes: object) -> ElementTree.Element:
    told = {name.replace("_", "-"): f"{v:.1f}" if isinstance(v, float) else str(v) for name, v in attributes.items()}
    element = ElementTree.SubElement(parent, tag, told)
    element.text = text or None
    return element


def _legend(root: ElementTree.Element, width: int, colours: dict[str, str]) -> None:
    x, y = 20.0, 20
    for name, colour in colours.items():
        needed = 30 + 7.2 * len(name)
        if x + needed > width and x > 20:
            x, y = 20.0, y + 20
        _put(root, "circle", cx=x, cy=y, r=5, fill=colour)
        _put(root, "text", name, x=x + 10, y=y + 4, font_size=12)
        x += needed
    told = "Right is faster, low is nearer to fp32: the better corner is below on the right. Bars: 95 % intervals."
    _put(root, "text", told, x=15, y=y + 28, font_size=12, fill="#475569")


def _panel(
    root: ElementTree.Element, left: int, top: int, title: str, found: list[Point], colours: dict[str, str]
) -> None:
    fastest = max(1.0, *(p.high for p in found)) * 1.08

    def across(speed: float) -> float:
        return left + WIDTH * min(speed, fastest) / fastest

    def down(changed: float) -> float:
        return top + HEIGHT * math.log(max(changed, FLOOR)) / math.log(FLOOR)

    _put(root, "rect", x=left, y=top, width=WIDTH, height=HEIGHT, fill="none", stroke="#94a3b8")
    _put(root, "text", title, x=left, y=top - 8, font_size=13, font_weight="bold")
    for share in (1.0, 0.1, 0.01, FLOOR):
        _put(root, "line", x1=left, x2=left + WIDTH, y1=down(share), y2=down(share), stroke="#e2e8f0")
        label = f"{'≤ ' if share == FLOOR else ''}{share * 100:g} %"
        _put(root, "text", label, x=left - 6, y=down(share) + 4, font_size=11, text_anchor="end")
    for speed in _ticks(fastest):
        _put(root, "text", f"{speed:g}×", x=across(speed), y=top + HEIGHT + 16, font_size=11, text_anchor="middle")
    # Slower than fp32 lies left of this line.
    _put(root, "line", x1=across(1), x2=across(1), y1=top, y2=top + HEIGHT, stroke="#94a3b8", stroke_dasharray="4 3")
    _put(root, "text", "times as fast as fp32", x=left + WIDTH / 2, y=top + HEIGHT + 34, font_size=11, text_anchor="middle")  # fmt: skip  # noqa: E501
    turn = f"rotate(-90 {left - 50} {top + HEIGHT / 2})"
    _put(root, "text", "answers unlike fp32's", x=left - 50, y=top + HEIGHT / 2, font_size=11, text_anchor="middle", transform=turn)  # fmt: skip  # noqa: E501
    for point in sorted(found, key=lambda p: p.name.startswith("edgerun")):
        colour, y = colours.get(point.name, OURS), down(point.changed)
        _put(root, "line", x1=across(point.low), x2=across(point.high), y1=y, y2=y, stroke=colour, stroke_width=2)
        mark = _put(root, "circle", cx=across(point.speed), cy=y, r=7 if colour == OURS else 5, fill=colour)
        _put(mark, "title", f"{point.name}: {point.speed:.2f} times fp32, {point.changed * 100:.2f} % changed")


def _ticks(fastest: float) -> list[float]:
    step = 0.5 if fastest < 4 else 1.0
    return [step * i for i in range(int(fastest / step) + 1)]
