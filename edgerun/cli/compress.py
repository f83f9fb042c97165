"""`edgerun compress`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write: .onnx, or .xml."
)
@click.option("--scheme", default="w8a8", show_default=True, help="Number formats: w8a8 is static INT8.")
@click.option("--target", default="onnxruntime", show_default=True, help="Whose kernels decide the placement.")
@click.option(
    "--calibration",
    required=True,
    metavar="DATA",
    help="An .npz, a folder of .npy or pictures, module:callable, or random[:N].",
)
@click.option(
    "--preset", default="default", show_default=True, help="fast, default or best: how much is looked at and tried."
)
@click.option(
    "--ranges", default="auto", show_default=True, help="auto, minmax, shrink90, shrink80, percentile, mse, entropy."
)
@click.option("--keep-float", multiple=True, metavar="NODE", help="Leave this node in float. Repeatable.")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most so many calibration samples.")
@click.option(
    "--memory-cap", type=click.IntRange(min=16), default=192, show_default=True, metavar="MIB", help="For activations."
)
@click.option("--preprocessing", type=click.Path(path_type=Path), help="JSON contract for a folder of pictures.")
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="Print what was decided and measured as JSON.")
def command(
    model: Path, output: Path, scheme: str, target: str, calibration: str, preset: str, ranges: str,
    keep_float: tuple[str, ...], limit: int | None, memory_cap: int, preprocessing: Path | None, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a model small and fast for one target; the evidence stands in its history (edgerun inspect)."""
    from edgerun.cli._progress import Stages, give_memory_back
    from edgerun.verbs.compress import compress

    give_memory_back()
    with Stages() as progress:
        result = compress(
            model, scheme=scheme, target=target, calibration=calibration, output=output, preset=preset, ranges=ranges,
            keep_float=keep_float, memory_cap=memory_cap << 20, limit=limit, preprocessing=preprocessing,
            force=force, progress=progress,
        )  # fmt: skip
    step = result.history[-1]
    before, after = model.stat().st_size, _size(output)
    for warning in step.options.get("calibration", {}).get("warnings", ()):
        click.echo(f"calibration data: {warning}", err=True)
    if as_json:
        click.echo(json.dumps({"output": str(output), "bytes": after, "bytes before": before, **step.options}))
        return
    found = step.options
    click.echo(f"{output}: {after / 1e6:.2f} MB (was {before / 1e6:.2f} MB), {scheme} for {target}")
    click.echo(f"{found['integer nodes']} nodes on integers, {found['quantized activations']} activations quantized")
    corrected = "biases corrected" if found["bias correction"] else "biases as they were"
    click.echo(f"ranges: {found['ranges']}, {corrected}, {len(found.get('equalized', ()))} chains equalized")
    click.echo(f"on the calibration data: SQNR {found['calibration SQNR (dB)']:.1f} dB to the float model")
    if found["random data"]:
        click.echo("the calibration data is random noise: expect the accuracy to be lost", err=True)


def _size(output: Path) -> int:
    weights = output.with_suffix(".bin")
    return output.stat().st_size + (weights.stat().st_size if output.suffix == ".xml" else 0)
