"""`edgerun inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgerun.contents import Contents
    from edgerun.verbs.inspect import Inspection, QdqSummary

GAINS = ["step", "gain", "90 %", "measured", "kept"]
OF = {"output": "samples", "layer": "layers", "predicted": "values"}  # what was counted, by where a gain is measured


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: Path, as_json: bool) -> None:
    """What an ONNX model, a recipe, or a target's file holds: inputs, outputs, ops, weights, contracts, history."""
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
        told = dict(step.options)
        gains = told.pop("steps", [])
        options = json.dumps(told, sort_keys=True)
        data = f", data {step.data[:12]}" if step.data else ""
        click.echo(
            f"{'' if number > 1 else chr(10)}step {number}: {step.name} (edgerun {step.version}) {options}{data}"
        )
        if gains:
            click.echo("\n" + table(GAINS, [_row(gain) for gain in gains]))


def _row(gain: Mapping[str, Any]) -> list[str]:
    """What one step of a pass brought."""
    low, high = gain["interval_db"] or (None, None)
    spread = "" if low is None else f"{low:+.2f} to {high:+.2f}"
    where = f"{gain['measured']}, {gain['n']} {OF[gain['measured']]}"
    return [gain["step"], f"{gain['gain_db']:+.2f} dB", spread, where, "yes" if gain["kept"] else "no"]


def _facts(found: Inspection | Contents) -> list[tuple[str, str]]:
    from edgerun.cli._table import size
    from edgerun.contents import Contents
    from edgerun.verbs import meaning

    if isinstance(found, Contents):
        kind = f"{found.format}, for target {found.target}"
    else:
        opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
        kind = f"IR {found.ir_version}, opset {opsets}" + (f", by {found.producer}" if found.producer else "")
    none = "edgerun did not write it" if isinstance(found, Contents) else "edgerun convert makes tables of dictionaries"
    device, options = (found.device, found.options) if isinstance(found, Contents) else ({}, None)
    compiled = "compiled for" if options is None else "to compile for"
    do = [("options", json.dumps(options) if options else "none"), ("to finish it", "edgerun warm, on that device")]
    return [
        ("file", f"{found.path}, {size(found.file_bytes)}"),
        ("format", kind),
        ("digest", found.digest or f"none: {none}"),
        *(("input", str(spec)) for spec in found.inputs),
        *(("output", str(spec)) for spec in found.outputs),
        ("preprocessing", json.dumps(found.preprocessing) if found.preprocessing else "none"),
        ("postprocessing", meaning.short(found.postprocessing) if found.postprocessing else "none"),
        *([(compiled, ", ".join(f"{k} {v}" for k, v in device.items() if v) or "any device")] if device else []),
        *([] if options is None else do),
    ]


def _echo_qdq(q: QdqSummary) -> None:
    covered = ", ".join(f"{op} {part} of {total}" for op, (part, total) in q.compute.items())
    click.echo(
        f"\nquantized: {q.quantize} QuantizeLinear, {q.dequantize} DequantizeLinear ({q.per_channel} per channel)"
    )
    click.echo(f"with dequantized weights: {covered or 'no compute op'}")
