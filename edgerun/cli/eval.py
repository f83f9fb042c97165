"""`edgerun eval`."""

from __future__ import annotations

from pathlib import Path

import click

from edgerun.cli import _options

_NAMES = {"top1": "top-1", "top5": "top-5"}


@click.command()
@click.argument("model", metavar="MODEL[@TARGET]")
@click.option("--data", required=True, help="Labelled data: .npz with labels or y, a folder, or module:callable.")
@click.option("--baseline", metavar="MODEL[@TARGET]", help="The model to measure the drop against.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Exit 1 unless the drop is surely below (95 %).")
@_options.metric("What is right", "the baseline")
@click.option("--target", help="What runs the models; default: by the file's kind.")
@_options.device
@_options.checked
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 (default): the quota.")
@click.option("--output", help="The output that the metric reads.")
@click.option("--batch", type=click.IntRange(min=1), help="Samples per run, where the model leaves it open.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use the first N samples.")
@click.option(
    "--preprocessing", type=click.Path(path_type=Path), help="A file of the contract for a folder of pictures."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (shares, not percent).")
def command(
    model: str, data: str, baseline: str | None, max_drop: float | None, metric: str | None, target: str | None,
    device: str | None, checked: bool, threads: int, output: str | None, batch: int | None, limit: int | None,
    preprocessing: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """How often is a model right, and how much worse is that than the baseline on the same samples?"""
    from edgerun.cli._table import echo_json, echo_notes, progress, table
    from edgerun.runtime import Options
    from edgerun.verbs.evaluate import evaluate
    from edgerun.verbs.scoring import DEFAULT

    with progress("evaluating", checked) as show:
        result = evaluate(
            model, data, baseline=baseline, max_drop=max_drop, metric=metric or DEFAULT, target=target, device=device,
            options=Options(threads), checked=checked, output=output, preprocessing=preprocessing, batch=batch,
            limit=limit, progress=show,
        )  # fmt: skip
    echo_notes(result.notes)
    if as_json:
        echo_json(result)
        result.require()
        return
    low, high = 100 * result.interval.low, 100 * result.interval.high
    rows = [[model, f"{100 * result.accuracy:.2f} %", f"{low:.2f} to {high:.2f}", str(result.samples)]]
    if result.against is not None:
        drop = result.against
        rows.append([f"{baseline} (baseline)", f"{100 * drop.baseline_accuracy:.2f} %", "", str(result.samples)])
        low, high = 100 * drop.interval.low, 100 * drop.interval.high
        rows.append(["drop, paired", f"{100 * drop.drop:.2f} points", f"{low:.2f} to {high:.2f}", str(result.samples)])
    click.echo(table(["model", _NAMES.get(result.metric, result.metric), "95 % interval", "n"], rows))
    if result.gate is not None:
        click.echo(f"drop below {100 * result.gate.max_drop:g} points: {result.gate.answer}")
    result.require()
