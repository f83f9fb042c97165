"""`edgerun compile`."""

from __future__ import annotations

from pathlib import Path

import click

from edgerun.cli import _options


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True,
    help="The file to write: .onnx, .ort, .xml or .engine; or .recipe, which a device finishes.",
)  # fmt: skip
@click.option("--target", metavar="NAME", help="What shall run it; default: by the output's kind, or the device's.")
@click.option("--device", metavar="NAME|FILE.toml", help="The device that the file is for (edgerun devices).")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 (default): the quota.")
@click.option(
    "--size", "sizes", multiple=True, metavar="NAME=LEAST,USUAL,MOST",
    help="The sizes of an open dimension, for targets that compile for a range. Repeatable, of one dimension too: "
    "the second ranges of all have kernels of their own.",
)  # fmt: skip
@click.option(
    "--input-shape", "shapes", multiple=True, metavar="NAME:[DIMS]",
    help="What most feeds are, as image:[1,3,224,224]; where that is faster, kernels are ready for it. Others run too.",
)  # fmt: skip
@_options.extra
@click.option("--data", help="Compare on the first four samples of it; default: random draws.")
@click.option(
    "--preprocessing", type=click.Path(path_type=Path), help="A file of the contract for a folder of pictures."
)
@click.option(
    "--original",
    type=click.Path(path_type=Path),
    metavar="FLOAT",
    help="The float model that a quantized one came from.",
)
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="Print what was compared as JSON.")
def command(
    model: Path, output: Path, target: str | None, device: str | None, threads: int, sizes: tuple[str, ...],
    shapes: tuple[str, ...], extra: dict[str, str], data: str | None, preprocessing: Path | None,
    original: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compile a model for one target, and write it when it computes what the reference does.

    An engine that cannot run here is not written, since nothing would have proven it. A .recipe holds the model, how to
    compile it, and outputs of the reference: the device compiles and compares it itself (edgerun warm). An .ort holds
    the graph as ONNX Runtime optimizes it, which opens faster: for this machine's CPU, or with --device for another.
    A device has to read the model; what is compared here, on another machine, says so.
    """
    from dataclasses import asdict

    from edgerun.cli._progress import Stages
    from edgerun.cli._table import echo_json, echo_notes, size, stored
    from edgerun.runtime import Options
    from edgerun.runtime.progress import told
    from edgerun.verbs.compiled import compiled

    options = Options(threads, extra, _options.sizes(sizes), usual=_options.usual(shapes))
    with Stages(percent=True) as show, told(show):
        made = compiled(
            model, output, target=target, device=device, options=options, data=data, preprocessing=preprocessing,
            original=original, force=force,
        )  # fmt: skip
    echo_notes(made.notes)
    if as_json:
        echo_json({"output": str(output), "bytes": stored(output), **asdict(made)})
        return
    place = f" on {made.for_device}" if made.for_device else ""
    click.echo(f"{output}: {size(stored(output))}, for {made.target}{place}")
    if made.check is not None:
        _options.echo_check(made.check)
    if made.again:
        again = " ".join(f"--option {option}" for option in made.again)
        click.echo(f"compared with {again}, which the file does not keep: give it again where the file runs")
    if made.untried:
        untried = " ".join(f"--option {option}" for option in made.untried)
        click.echo(f"compared without {untried}, which this machine has no kernels for: give it where the file runs")
    if made.tried is not None:
        click.echo(made.tried, err=True)
        click.echo(f"the device finishes it: edgerun warm {output.name}")
