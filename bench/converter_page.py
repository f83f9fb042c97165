"""docs/converters.md out of results/converters.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import cpu_ratio
from edgerun import files

PAGE = Path(__file__).parents[1] / "docs" / "converters.md"
HEAD = """# Files of strangers that were converted

Written by `python -m bench.converters`: trained models that others published in package registries, fetched by
version and SHA-256, converted as a user's file is. `nodes` counts those of subgraphs too, and no Cast of a weight
(float16 weights in TFLite files stay so, which halves the file; runtimes compute it when they load). `other`
are those of the other route: torch.onnx and onnxslim for PyTorch, onnxslim for ONNX, Keras's export and tf2onnx for
Keras, tf2onnx for TensorFlow and TFLite (scikit-learn's and XGBoost's is skl2onnx, which ours goes through; an empty
cell was not measured). `× other` says how many times faster ours runs than that on ONNX Runtime: CPU time, one thread,
batch 1, in turns, n = {n} rounds in {sessions} sessions, with the 95 % interval; **bold** where the interval leaves 1.
`error` is the largest against the source in float64 (with a *, in its own precision), relative to the largest output;
where the source computes on codes, the largest difference in steps and the share of codes that differ at all. `s` is
what `convert` took with its comparison, on a machine that did other work.

{converted} are converted, {refused} refused.
"""


def write(results: Mapping[str, Any]) -> None:
    """Write the page."""
    files.write_bytes(PAGE, page(results).encode())


def page(results: Mapping[str, Any]) -> str:
    """The page: what was converted, then what is refused with which words."""
    done = {name: row for name, row in results.items() if "refused" not in row}
    refused = {name: row for name, row in results.items() if "refused" in row}
    counts = {"converted": len(done), "refused": len(refused)}
    parts = [HEAD.format(n=cpu_ratio.SESSIONS * cpu_ratio.ROUNDS, sessions=cpu_ratio.SESSIONS, **counts)]
    lines = ["| file | of | package | nodes | other | × other | error | s |", "|---|---|---|---|---|---|---|---|"]
    lines += [_row(name, row) for name, row in done.items()]
    parts.append("\n".join(lines) + "\n")
    parts.append("## What is refused, and why\n\n" + "\n".join(map(_refusal, refused, refused.values())) + "\n")
    return "\n".join(parts)


def _row(name: str, row: Mapping[str, Any]) -> str:
    other = row.get("other", {})
    error = f"{row['relative_error']:.0e}" + ("" if row["reference"] == "float64" else "*")
    if "steps" in row:
        error = f"{row['steps']:g} step, {row['differing']:.2%}"
    if row["relative_error"] == 0:
        error = "equal"
    told = f"{other.get('nodes', other.get('failed', ''))}".replace("|", "\\|")
    cells = (name, row["framework"], row["package"], row["nodes"], told, speed(row.get("speedup", {})), error)
    return "| " + " | ".join(map(str, (*cells, row["seconds"]))) + " |"


def speed(row: Mapping[str, Any]) -> str:
    """`1.15 [1.08, 1.19]`, bold where the interval is above or below 1; "" where there is none."""
    if "value" not in row:
        return "does not run" if row.get("failed") else ""
    text = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return text if row["low"] <= 1 <= row["high"] else f"**{text}**"


def _refusal(name: str, row: Mapping[str, Any]) -> str:
    said = row["refused"]
    got = "; ".join(line.strip() for line in said["got"].splitlines() if line.strip())
    return f"- **{name}** ({row['framework']}, {row['package']}): {said['what']}. {_safe(got)}. *{_safe(said['do'])}*"


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
