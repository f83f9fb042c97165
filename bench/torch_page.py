"""docs/pytorch.md out of results/pytorch.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import cpu_ratio
from bench.converter_page import speed
from edgerun import files

PAGE = Path(__file__).parents[1] / "docs" / "pytorch.md"
HEAD = """# PyTorch networks that were converted

Written by `python -m bench.torch_coverage`, torch {torch}: small networks with random weights, each written as its
users write it. Every dimension that is a word was converted as dynamic, and compared with the source at three sizes.
`error` is the largest error against the source in float64 (where a name has a *, in float32), relative to the largest
output. `slim` are the nodes that onnxslim leaves of the same export. `× slim` says how many times faster ours runs than
that on ONNX Runtime: CPU time, one thread, batch 1, in turns, n = {n} rounds in {sessions} sessions, with the 95 %
interval; **bold** where the interval leaves 1. The seconds are those of `convert` with its comparison, on a machine
that did other work too.

{converted} of {all} are converted, {refused} refused with a reason. {fewer} have fewer nodes than onnxslim leaves,
{same} as many, {more} more; {faster} run faster, {slower} slower, and of the others no difference was seen.
"""


def write(results: Mapping[str, Any]) -> None:
    """Write the page."""
    files.write_bytes(PAGE, page(results).encode())


def page(results: Mapping[str, Any]) -> str:
    """The page: converted networks by kind, which nodes differ from onnxslim's, and what is refused."""
    done = {name: row for name, row in results.items() if "refused" not in row}
    refused = {name: row for name, row in results.items() if "refused" in row}
    torch = ", ".join(sorted({row["torch"] for row in results.values()}))
    gaps = [row["nodes"] - row["slim"] for row in done.values() if "slim" in row]
    verdicts = [row["speedup"].get("verdict") for row in done.values() if "speedup" in row]
    told = {"fewer": sum(gap < 0 for gap in gaps), "same": gaps.count(0), "more": sum(gap > 0 for gap in gaps),
            "faster": verdicts.count("faster"), "slower": verdicts.count("slower"),
            "n": cpu_ratio.SESSIONS * cpu_ratio.ROUNDS, "sessions": cpu_ratio.SESSIONS}  # fmt: skip
    parts = [HEAD.format(torch=torch, converted=len(done), all=len(results), refused=len(refused), **told)]
    for kind, title in (("plain", "Plain networks"), ("transformers", "Families of transformers, tiny configurations")):
        rows = {name: row for name, row in done.items() if row["kind"] == kind}
        if rows:
            parts.append(f"## {title}\n\n{_table(rows)}")
    others = {name: row for name, row in done.items() if row["failed"]}
    parts.append("## Why another route than torch.export\n\n" + "\n".join(map(_why, others, others.values())) + "\n")
    parts.append("## What is refused, and why\n\n" + "\n".join(map(_refusal, refused, refused.values())) + "\n")
    return "\n".join(parts)


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| network | inputs | route | nodes | slim | × slim | error | s |", "|---|---|---|---|---|---|---|---|"]
    for name, row in rows.items():
        mark = "" if row["reference"] == "float64" else "*"
        inputs = "<br>".join(f"`{spec}`" for spec in row["inputs"])
        nodes = f"{row['nodes']} | {row.get('slim', '')} | {speed(row.get('speedup', {}))}"
        numbers = f"{nodes} | {row['relative_error']:.0e} | {row['seconds']}"
        lines.append(f"| {name}{mark} | {inputs} | {row['route']} | {numbers} |")
    return "\n".join(lines) + "\n"


def _why(name: str, row: Mapping[str, Any]) -> str:
    reasons = "; ".join(f"{attempt['route']}: {attempt['failed']}" for attempt in row["failed"])
    return f"- **{name}** ({row['route'] or 'judged by the comparison'}). {_safe(reasons)}"


def _refusal(name: str, row: Mapping[str, Any]) -> str:
    lines = "; ".join(line.strip() for line in row["got"].splitlines())
    return f"- **{name}**: {row['refused']}. {_safe(lines)}. *{row['do']}*"


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
