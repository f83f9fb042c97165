"""`edgerun compare`."""

from __future__ import annotations

from pathlib import Path

import click

from edgerun.cli import _options


@click.command()
@click.argument("a", metavar="A[@TARGET]")
@click.argument("b", metavar="B[@TARGET]")
@click.option("--data", required=True, help="Feeds: .npz, .npy, a folder, module:callable, or random[:N].")
@click.option("--target", help="What runs both models; default: by the file's kind.")
@click.option("--target-b", help="What runs B.")
@_options.device
@_options.checked
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 (default): the quota.")
@click.option("--batch", type=click.IntRange(min=1), help="Samples per run, where the models leave it open.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use the first N samples.")
@click.option(
    "--preprocessing", type=click.Path(path_type=Path), help="A file of the contract for a folder of pictures."
)
@click.option("--min-sqnr", type=float, metavar="DB", help="Exit 1 when an output has less.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (null: not a finite number).")
def command(
    a: str, b: str, data: str, target: str | None, target_b: str | None, device: str | None, checked: bool,
    threads: int, batch: int | None, limit: int | None, preprocessing: Path | None, min_sqnr: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """How far do the outputs of B lie from those of A, on the same feeds?

    SQNR in dB (inf: identical), largest absolute error, cosine, and how often the top-1 classes agree.
    """
    from edgerun.cli._table import echo_json, echo_notes, progress, table
    from edgerun.runtime import Options
    from edgerun.verbs.compare import compare

    with progress("comparing", checked) as show:
        result = compare(
            a, b, data, target=target, target_b=target_b, device=device, options=Options(threads),
            checked=checked, preprocessing=preprocessing, batch=batch, limit=limit, progress=show,
        )  # fmt: skip
    echo_notes(result.notes)
    if as_json:
        echo_json(result)
    else:
        rows = [
            [
                o.name, f"{o.sqnr_db:.2f}", f"{o.max_abs_error:.3g}", f"{o.relative_error:.3g}", f"{o.cosine:.6f}",
                "-" if o.agreement is None else f"{100 * o.agreement:.2f} %", str(result.samples),
            ]
            for o in result.outputs
        ]  # fmt: skip
        headers = ["output", "SQNR dB", "max abs error", "relative", "cosine", "top-1 agreement", "n"]
        click.echo(table(headers, rows))
    if min_sqnr is not None:
        result.require(min_sqnr)
