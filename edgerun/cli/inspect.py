"""`edgerun inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgerun.contents import Contents
    from edgerun.verbs.inspect import Inspection, QdqSummary


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: Path, as_json: bool) -> None:
    """What is in an ONNX model, or in a file that a target wrote: inputs, outputs, ops, weights, contracts, history."""
    from edgerun.cli._table import echo_json, size, table
    from edgerun.verbs.inspect import Inspection, inspect

    found = inspect(model)
    if as_json:
        echo_json(found)
        return
    click.echo("\n".join(f"{name:<14} {text}" for name, text in _facts(found)))
    if found.ops:
        click.echo("\n" + table(["op", "count"], [[op, str(count)] for op, count in found.ops.items()]))
    if found.weights:
        weights = [[d, str(w.tensors), f"{w.elements:,}", size(w.bytes)] for d, w in found.weights.items()]
        click.echo("\n" + table(["weights", "tensors", "elements", "size"], weights))
    if isinstance(found, Inspection) and (found.qdq.quantize or found.qdq.dequantize):
        _echo_qdq(found.qdq)
    for number, step in enumerate(found.history, 1):
        options = json.dumps(step.options, sort_keys=True)
        data = f", data {step.data[:12]}" if step.data else ""
        click.echo(
            f"{'' if number > 1 else chr(10)}step {number}: {step.name} (edgerun {step.version}) {options}{data}"
        )


def _facts(found: Inspection | Contents) -> list[tuple[str, str]]:
    from edgerun import answers
    from edgerun.cli._table import size
    from edgerun.contents import Contents

    if isinstance(found, Contents):
        kind = f"{found.format}, for target {found.target}"
    else:
        opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
        kind = f"IR {found.ir_version}, opset {opsets}" + (f", by {found.producer}" if found.producer else "")
    device = found.device if isinstance(found, Contents) else {}
    return [
        ("file", f"{found.path}, {size(found.file_bytes)}"),
        ("format", kind),
        ("digest", found.digest or "none: edgerun did not write it"),
        *(("input", str(spec)) for spec in found.inputs),
        *(("output", str(spec)) for spec in found.outputs),
        ("preprocessing", json.dumps(found.preprocessing) if found.preprocessing else "none"),
        ("postprocessing", answers.short(found.postprocessing) if found.postprocessing else "none"),
        *([("compiled for", ", ".join(f"{k} {v}" for k, v in device.items() if v))] if device else []),
    ]


def _echo_qdq(q: QdqSummary) -> None:
    covered = ", ".join(f"{op} {part} of {total}" for op, (part, total) in q.compute.items())
    click.echo(
        f"\nquantized: {q.quantize} QuantizeLinear, {q.dequantize} DequantizeLinear ({q.per_channel} per channel)"
    )
    click.echo(f"with dequantized weights: {covered or 'no compute op'}")
