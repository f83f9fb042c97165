"""The page of `edgerun why-wrong`: one file that needs no network, with the table, damage bars and range plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BINS = 120
DARK, PALE, RED, GREEN = "#22577a", "#9db4c0", "#c1292e", "#2a9d8f"


@dataclass(frozen=True)
class Bar:
    """One row's cost and its fix's gain, dB with [low, high]; gain None where nothing was tried or helped."""

    label: str
    cost: tuple[float, float, float]
    gain: tuple[float, float, float] | None


@dataclass(frozen=True)
class Tensor:
    """An activation: an even sample of its values `[m]`, the grid's ends, and the extremes of its channels `[C]`."""

    name: str
    cause: str
    sample: np.ndarray
    low: float
    high: float
    channel_low: np.ndarray
    channel_high: np.ndarray


@dataclass(frozen=True)
class Page:
    """What the page shows. `rows` are cells under `headers`; `explained` are sentences, one per row.

    `ending` are lines: which fixes pay, or why none does.
    """

    title: str
    facts: Sequence[str]
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    explained: Sequence[str]
    ending: Sequence[str]
    bars: Sequence[Bar]
    tensors: Sequence[Tensor]


def render(page: Page) -> str:
    """HTML with plotly.js inside (about 5 MB). Needs jinja2 and plotly (the extra `report`)."""
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    figures = [_figure(_bars(page.bars), 90 + 44 * len(page.bars))] if page.bars else []
    tensors = [
        (t.name, t.cause, _figure(_histogram(t), 280), _figure(_channels(t), 280) if len(t.channel_low) > 1 else "")
        for t in page.tensors
    ]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    template = environment.get_template("why_wrong.html")
    return template.render(page=page, script=get_plotlyjs(), bars="".join(figures), tensors=tensors)


def _figure(figure: Any, height: int) -> str:
    figure.update_layout(height=height, margin={"l": 60, "r": 20, "t": 36, "b": 44}, template="plotly_white",
                         font={"family": "system-ui, sans-serif", "size": 13},
                         legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})  # fmt: skip
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    return text


def _bars(bars: Sequence[Bar]) -> Any:
    from plotly import graph_objects as go  # type: ignore[import-untyped]

    figure = go.Figure()
    for name, colour, values in (
        ("costs", RED, [b.cost for b in bars]),
        ("its fix gains", GREEN, [b.gain or (0.0, 0.0, 0.0) for b in bars]),
    ):
        finite = [bool(np.isfinite(v).all()) for v in values]
        figure.add_bar(
            name=name, orientation="h", y=[b.label for b in bars], x=[v[0] for v in values], marker_color=colour,
            error_x={
                "type": "data", "symmetric": False, "color": "#555", "thickness": 1,
                "array": [v[2] - v[0] if f else 0 for v, f in zip(values, finite, strict=True)],
                "arrayminus": [v[0] - v[1] if f else 0 for v, f in zip(values, finite, strict=True)],
            },
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="dB of SQNR at the output, 95 % intervals")
    return figure


def _histogram(tensor: Tensor) -> Any:
    """How often which value occurs, on a logarithmic axis; the grid's range is shaded and its ends are drawn."""
    from plotly import graph_objects as go

    counts, edges = np.histogram(tensor.sample, BINS)
    figure = go.Figure(go.Bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, marker_color=DARK, name="values"))
    low, high = float(edges[0]), float(edges[-1])
    figure.add_vrect(tensor.low, tensor.high, fillcolor=GREEN, opacity=0.12, line_width=0, layer="below")
    for end in (tensor.low, tensor.high):
        figure.add_vline(end, line_color=GREEN, line_width=2)
    # A grid a hundred times as wide as the data would leave one bar to see.
    reach = 3 * (high - low)
    view = [max(min(low, tensor.low), low - reach), min(max(high, tensor.high), high + reach)]
    margin = 0.02 * (view[1] - view[0])
    figure.update_layout(title=f"values; green: the grid, {tensor.low:.4g} to {tensor.high:.4g}", bargap=0)
    figure.update_xaxes(range=[view[0] - margin, view[1] + margin], title="value in the float model")
    figure.update_yaxes(type="log", title="count in a sample")
    return figure


def _channels(tensor: Tensor) -> Any:
    """From the lowest to the highest value of every channel, largest first."""
    from plotly import graph_objects as go

    order = np.argsort(-np.maximum(tensor.channel_high, -tensor.channel_low))
    low, high = tensor.channel_low[order], tensor.channel_high[order]
    figure = go.Figure(
        go.Bar(
            x=np.arange(len(order)), y=high - low, base=low, marker_color=DARK, name="channel",
            customdata=order, hovertemplate="channel %{customdata}: %{base:.4g} to %{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(title="range of each channel, largest first", bargap=0.1)
    figure.update_xaxes(title="channels in order of size")
    figure.update_yaxes(title="value")
    return figure
