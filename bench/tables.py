"""Results as Markdown: one page with a verdict per model and target, and every number below it."""

from __future__ import annotations

from typing import Any

from bench import chart
from edgerun.errors import EdgerunError

Result = dict[str, Any]
CHART = "chart.svg"  # beside the page
COMMAND = "python -m bench.compare_peers"
_DETAILS = (
    "variant",
    "on",
    "accuracy, %",
    "drop, points [95 %]",
    "agreement",
    "SQNR, dB [95 %]",
    "cosine",
    "MB",
    "p50, ms",
    "× fp32 [95 %]",
    "verdict",
    "seconds",
    "peak MB",
)
_OURS = {"onnxruntime": "edgerun_onnxruntime", "openvino": "edgerun_openvino"}


def page(results: list[Result]) -> str:
    """The whole page."""
    parts = [
        "# edgerun beside its peers",
        f"Made by `{COMMAND}`; every number below is from that run.",
        *_devices(results),
    ]
    parts += ["## At a glance", summary(results)]
    parts += [f"![answers changed against speed, per model and target]({CHART})"] if chart.svg(results) else []
    parts += [f"## {r['model']}\n\n{r['metric']}\n\n{details(r)}" for r in results]
    return "\n\n".join(parts) + "\n"


def in_readme(text: str, results: list[Result]) -> str:
    """`text` with the summary between the marks that the README keeps for it."""
    before, opening, rest = text.partition("<!-- bench:")
    mark, ended, rest = rest.partition("-->")
    _, closing, after = rest.partition("<!-- /bench -->")
    if not (opening and ended and closing):
        raise EdgerunError("README.md has no place for the table", wanted="<!-- bench: … --> and <!-- /bench -->")
    told = (
        "edgerun, and in brackets the best peer of each column (it differs between columns); bold where edgerun\n"
        "is as good or better. A peer that quantized nothing is left out. Drop: accuracy lost against fp32, paired.\n"
        "× fp32: p50 latency, batch 1, one thread. Seconds and peak memory of calibration and quantization as a whole\n"
        "process, imports included, one run each."
    )
    return f"{before}{opening}{mark}-->\n\n{summary(results)}\n\n{told}\n\n{closing}{after}"


def _devices(results: list[Result]) -> list[str]:
    told = {
        (d["cpu"], d["isa"]): None
        for r in results
        for t in r["targets"].values()
        if "latency" in t
        for d in [t["latency"]["device"]]
    }
    return [
        f"CPU: {cpu} ({isa}); latency: batch 1, one thread, all variants interleaved in one process."
        for cpu, isa in told
    ]


def summary(results: list[Result]) -> str:
    """One row per model and target: edgerun and, in brackets, the best peer, which may differ between columns."""
    lines = _head("model", "target", "drop, points [95 %]", "agreement", "× fp32 [95 %]", "seconds", "peak MB")
    for r in results:
        for target, told in r["targets"].items():
            ours = _OURS[target]
            peers = [
                name for name, score in told["accuracy"].items() if name not in (ours, "fp32") and not _as_was(score)
            ]
            if ours in told["accuracy"] and peers:
                lines.append(_summary_row(r, target, told, ours, peers))
    return "\n".join(lines)


def _summary_row(r: Result, target: str, told: Result, ours: str, peers: list[str]) -> str:
    accuracy, cost = told["accuracy"], r["quantize"]
    cells = [
        _best(
            {n: accuracy[n]["drop"]["value"] * 100 for n in (ours, *peers)},
            ours,
            min,
            "{:.2f}",
            _interval(accuracy[ours]["drop"], 100),
        ),
        _best({n: accuracy[n]["agreement"] for n in (ours, *peers)}, ours, max, "{:.3f}"),
        "",
        _best({n: cost[n]["wall_s"] for n in (ours, *peers)}, ours, min, "{:.1f}"),
        _best({n: cost[n]["peak_mb"] for n in (ours, *peers)}, ours, min, "{:.0f}"),
    ]
    if "latency" in told:
        rows = told["latency"]["rows"]
        speedups = {n: rows[n]["speedup"]["value"] for n in (ours, *peers)}
        cells[2] = _best(speedups, ours, max, "{:.2f}", _interval(rows[ours]["speedup"]))
    return f"| {r['model']} | {target} | " + " | ".join(cells) + " |"


def _as_was(score: dict[str, Any]) -> bool:
    """Whether a model computes what fp32 does, to the last bit: nothing in it was quantized."""
    return bool(score["sqnr_db"] == float("inf"))


def _best(values: dict[str, float], ours: str, better: Any, form: str, interval: str = "") -> str:
    own = values.pop(ours)
    peer = better(values, key=lambda name: values[name])
    mark = "**" if better(own, values[peer]) == own else ""
    return f"{mark}{form.format(own)}{mark}{interval} ({form.format(values[peer])} {peer})"


def _interval(estimate: dict[str, float], scale: float = 1.0) -> str:
    return f" [{estimate['low'] * scale:.2f}, {estimate['high'] * scale:.2f}]"


def details(r: Result) -> str:
    """One row per variant and target: accuracy, fidelity, size, latency, and what the quantization took."""
    lines = _head(*_DETAILS)
    for target, told in r["targets"].items():
        for name, score in told["accuracy"].items():
            cost = r["quantize"].get(name)
            time = told.get("latency", {}).get("rows", {}).get(name)
            cells = [name, target, *_accuracy(score), f"{(cost or r)['size'] / 1e6:.2f}", *_latency(time)]
            cells += [f"{cost['wall_s']:.1f}", f"{cost['peak_mb']:.0f}"] if cost else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
        lines += [_failed(name, target, f"its model does not run: {why}") for name, why in told["failed"].items()]
    made = {name: cost["failed"] for name, cost in r["quantize"].items() if "failed" in cost}
    return "\n".join([*lines, *(_failed(name, "", f"makes no model: {why}") for name, why in made.items())])


def _failed(name: str, target: str, why: str) -> str:
    told = " ".join(why.replace("|", "/").split())
    return f"| {name} | {target} | fails: {told[:200]} |" + " |" * (len(_DETAILS) - 3)


def _head(*columns: str) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def _accuracy(score: Result) -> list[str]:
    drop = score["drop"]
    return [
        f"{score['accuracy']['value'] * 100:.2f} (n={score['n']})",
        f"{drop['value'] * 100:.2f} [{drop['low'] * 100:.2f}, {drop['high'] * 100:.2f}]",
        f"{score['agreement']:.4f}",
        _decibels(score["sqnr_db"], score.get("sqnr_interval")),
        f"{score['cosine']:.5f}",
    ]


def _decibels(value: float | None, interval: dict[str, float] | None) -> str:
    if value is None:
        return ""
    if value == float("inf"):
        return "as fp32"
    return f"{value:.1f}" + (f" [{interval['low']:.1f}, {interval['high']:.1f}]" if interval else "")


def _latency(row: Result | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    ratio = row["speedup"]
    shown = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "1"
    return [f"{row['p50_ms']['value']:.3f}", shown, row["verdict"]]
