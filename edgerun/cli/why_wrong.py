"""`edgerun why-wrong`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgerun.cli import _options

if TYPE_CHECKING:
    from edgerun.verbs.diagnosed import Diagnosed


@click.command()
@click.argument("model", metavar="FP32", type=click.Path(path_type=Path))
@click.argument("quantized", metavar="INT8", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Calibration or development data (labels are used), never the test set.")
@click.option("--target", help="Whose rules hold for the device; default: its own, or onnxruntime.")
@click.option("--device", metavar="NAME|FILE.toml", help="Where INT8 runs (edgerun devices); default: here.")
@click.option(
    "--saturating/--not-saturating",
    default=None,
    help="The device's CPU adds two u8·s8 products in 16 bits (x86-64 without VNNI). Default: as it does.",
)
@click.option("--top", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Rows to show.")
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    metavar="N",
    help="Samples to use, 32 unless told; as many others judge fixes.",
)
@click.option(
    "--preprocessing", type=click.Path(path_type=Path), help="A file of the contract for a folder of pictures."
)
@_options.metric("What is right", "FP32")
@click.option("--scores", metavar="NAME", help="The output that the metric reads, as the one with the classes.")
@click.option("--html", type=click.Path(path_type=Path), metavar="PAGE", help="Write a page with plots.")
@click.option("--fix", type=click.Path(path_type=Path), metavar="OUT", help="Write the model with the fixes that pay.")
@click.option("--force", is_flag=True, help="Replace PAGE and OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (null: not a finite number).")
def command(
    model: Path, quantized: Path, data: str, target: str | None, device: str | None, saturating: bool | None, top: int,
    limit: int | None, preprocessing: Path | None, metric: str | None, scores: str | None, html: Path | None,
    fix: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Which layers of INT8 do the damage, why, and what would repair it?

    INT8 is any model with QuantizeLinear/DequantizeLinear pairs, products that are dynamic or have weights in few bits,
    or LSTMs on integers, that was made from FP32. Rows
    are ranked by what the output gains when only that quantizer, or that recurrent layer, computes in float. Exit 1
    where --fix is given and no fix pays, after all that was found has been told.
    """
    from edgerun.cli._progress import Stages
    from edgerun.cli._table import echo_json, echo_notes
    from edgerun.verbs.why_wrong import why_wrong

    with Stages() as progress:
        result = why_wrong(
            model, quantized, data, target=target, device=device, saturating=saturating, top=top,
            limit=limit, preprocessing=preprocessing, metric=metric, output=scores, html=html, fix=fix, force=force,
            progress=progress,
        )  # fmt: skip
    echo_notes(result.notes)
    if as_json:
        echo_json(result)
    else:
        _show(result)
        for path in filter(None, (fix if result.fixes else None, html)):
            click.echo(f"wrote {path}")
    if fix is not None:
        result.require_fixes()


def _show(result: Diagnosed) -> None:
    from edgerun.cli._table import table
    from edgerun.verbs.diagnosed import cells

    click.echo(result.beginning())
    click.echo(table(*cells(result)) + "\n")
    for number, row in enumerate(result.rows, 1):
        click.echo(f"{number}. {row.layer} ({row.kind}), {row.cause}: {row.evidence}")
    click.echo("\n" + "\n".join(result.ending()))
