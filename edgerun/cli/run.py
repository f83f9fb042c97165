"""`edgerun run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgerun.cli import _options

if TYPE_CHECKING:
    from edgerun.runtime import Options


@click.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL[@TARGET]")
@click.option("--feeds", type=click.Path(path_type=Path), help="An .npz, its arrays named as the inputs.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .npz to write the outputs for --feeds to.")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="PICTURE|FOLDER", help="Pictures, whose answers are printed."
)
@click.option("--preprocessing", type=click.Path(path_type=Path), help="A file of the contract for pictures.")
@click.option("--postprocessing", type=click.Path(path_type=Path), help="A file of the contract for the outputs.")
@click.option("--target", metavar="NAME", help="Where to run; default: onnxruntime for .onnx, openvino for .xml.")
@_options.device
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0, the default, takes the CPU quota.")
@_options.extra
@_options.max_rss
@_options.checked
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the answers, or the outputs' names and types, as JSON.")
def command(
    model: Path, feeds: Path | None, output: Path | None, data: Path | None, preprocessing: Path | None,
    postprocessing: Path | None, target: str | None, device: str | None, threads: int, extra: dict[str, str],
    max_rss: int, checked: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run a model: on one set of feeds, and write its outputs; or on pictures, and print what it says of them.

    For pictures its contracts have to say how they go in and what comes out; they are in the file, or given.
    """
    from edgerun.runtime import Options

    options = Options(threads, extra, max_rss=max_rss)
    if data is not None:
        if feeds is not None or output is not None:
            raise click.UsageError("--data prints answers: --feeds and -o are for the outputs as they are")
        _answers(model, data, target, device, options, preprocessing, postprocessing, checked, as_json)
        return
    if feeds is None or output is None:
        raise click.UsageError("give --feeds FILE.npz and -o FILE.npz, or --data PICTURE")
    if preprocessing is not None or postprocessing is not None:
        raise click.UsageError("--preprocessing and --postprocessing go with --data")
    from edgerun.cli._table import comparing
    from edgerun.verbs.run import run

    with comparing(checked):
        outputs = run(model, feeds, output, target=target, device=device, options=options, checked=checked, force=force)
    rows = [{"name": name, "dtype": a.dtype.name, "shape": list(a.shape)} for name, a in outputs.items()]
    if as_json:
        click.echo(json.dumps({"output": str(output), "outputs": rows}))
        return
    for row in rows:
        click.echo(f"{row['name']}: {row['dtype']}{row['shape']}")


def _answers(
    model: Path, data: Path, target: str | None, device: str | None, options: Options, preprocessing: Path | None,
    postprocessing: Path | None, checked: bool, as_json: bool,
) -> None:  # fmt: skip
    from edgerun.cli._table import comparing
    from edgerun.verbs.predict import predict

    with comparing(checked):
        found = predict(
            model, data, target=target, device=device, options=options, checked=checked,
            preprocessing=preprocessing, postprocessing=postprocessing,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({picture: prediction.to_json() for picture, prediction in found.items()}))
        return
    for picture, prediction in found.items():
        click.echo(f"{picture}:{'' if prediction.labels else ' nothing above the threshold'}")
        for row in prediction.to_json():
            box = f"  at {' '.join(f'{value:.1f}' for value in row['box'])}" if "box" in row else ""
            click.echo(f"  {row['score']:.4f}  {row['label'] or row['index']}{box}")
