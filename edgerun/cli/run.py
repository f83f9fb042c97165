"""`edgerun run`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgerun.cli import _options


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--feeds", type=click.Path(path_type=Path), required=True, help="An .npz, its arrays named as the inputs."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .npz to write.")
@click.option("--target", metavar="NAME", help="Where to run; default: onnxruntime for .onnx, openvino for .xml.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0, the default, takes the CPU quota.")
@_options.extra
@_options.max_rss
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the outputs' names and types as JSON.")
def command(
    model: Path, feeds: Path, output: Path, target: str | None, threads: int, extra: dict[str, str],
    max_rss: int, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run a model on one set of feeds and write its outputs."""
    from edgerun.runtime import Options
    from edgerun.verbs.run import run

    outputs = run(model, feeds, output, target=target, options=Options(threads, extra, max_rss=max_rss), force=force)
    rows = [{"name": name, "dtype": a.dtype.name, "shape": list(a.shape)} for name, a in outputs.items()]
    if as_json:
        click.echo(json.dumps({"output": str(output), "outputs": rows}))
        return
    for row in rows:
        click.echo(f"{row['name']}: {row['dtype']}{row['shape']}")
