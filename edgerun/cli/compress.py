"""`edgerun compress`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli import _options

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.quantize import Compiled
    from edgerun.verbs.clock import Speed

SQNR, JUDGED = "calibration SQNR (dB)", "calibration SQNR"  # in the history
SMALLER = 0.99  # times the size before: what is less of a difference is no gain
SCHEMES = (
    "w8a8: static INT8. w8a8_dynamic: INT8, activations quantized as they come. "
    "w8a16, w4a16_b32, fp16: weights in 8, 4 or 16 bits; smaller, no faster. "
    "w4a8: as w4a16_b32, activations quantized as they come. fp8, w4a16_b64: for TensorRT. "
    "w16a16: float16 arithmetic on GPUs, bfloat16 on CPUs with AMX (OpenVINO)."
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write: .onnx, .xml, or .engine."
)
@click.option("--scheme", default="w8a8", show_default=True, help=SCHEMES)
@click.option("--target", metavar="NAME", help="Whose kernels decide the placement (onnxruntime, or the device's).")
@click.option("--device", metavar="NAME|FILE.toml", help="The device it is for: its target, instruction sets, limits.")
@click.option(
    "--calibration",
    metavar="DATA",
    help="An .npz, a folder of .npy or pictures, module:callable, or random[:N]. Only w8a8 and fp8 need it.",
)
@click.option("--preset", metavar="NAME", help="fast, default (which it is) or best: how much is looked at and tried.")
@click.option(
    "--ranges", default="auto", show_default=True, help="auto, minmax, shrink90, shrink80, percentile, mse, entropy."
)
@click.option("--keep-float", multiple=True, metavar="NODE", help="Leave this node in float. Repeatable.")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most so many calibration samples.")
@click.option(
    "--memory-cap", type=click.IntRange(min=16), metavar="MIB", help="For activations of the calibration data; 192."
)
@click.option(
    "--preprocessing", type=click.Path(path_type=Path), help="A file of the contract for a folder of pictures."
)
@click.option(
    "--fold-preprocessing",
    "fold",
    is_flag=True,
    help="Move the contract's scale, mean, std, channel order and layout into the graph first: uint8 NHWC goes in.",
)
@click.option("--max-drop", metavar="POINTS", help="Keep layers in float until less accuracy is surely lost (95 %).")
@click.option("--labelled", metavar="DATA", help="Labelled data that proves --max-drop; calibration must not see it.")
@_options.metric("The accuracy of --max-drop", "the float model")
@click.option("--logits", metavar="OUTPUT", help="The output that the metric reads, for --max-drop.")
@click.option(
    "--placement",
    metavar="clock|rules",
    help="clock (default): time the result against fp32; what does not pay stays float. rules: time nothing. "
    "$EDGERUN_PLACEMENT changes the default.",
)
@click.option(
    "--input-shape",
    "shapes",
    multiple=True,
    metavar="NAME:[DIMS]",
    help="What the device runs, as image:[1,3,224,224]; timed on that, else on the first sample.",
)
@click.option("--allow-slower", is_flag=True, help="Write it even if the clock says that fp32 is faster.")
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="Print what was decided and measured as JSON.")
def command(
    model: Path, output: Path, scheme: str, target: str | None, device: str | None, calibration: str | None,
    preset: str | None, ranges: str, keep_float: tuple[str, ...], limit: int | None, memory_cap: int | None,
    preprocessing: Path | None, fold: bool, max_drop: str | None, labelled: str | None, metric: str | None,
    logits: str | None, placement: str | None, shapes: tuple[str, ...], allow_slower: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make a model small and fast for one target; the evidence stands in its history (edgerun inspect)."""
    from edgerun import _late
    from edgerun.cli._progress import Stages, give_memory_back
    from edgerun.cli._table import stored
    from edgerun.errors import GateFailed, to_json
    from edgerun.verbs.compress import compress

    give_memory_back()
    _late.load_now(_late.GRAPHS)
    speeds: list[Speed] = []
    engines: list[Compiled] = []
    cap = None if memory_cap is None else memory_cap << 20
    try:
        with Stages() as progress:
            result = compress(
                model, scheme=scheme, target=target, device=device, calibration=calibration, output=output,
                preset=preset, ranges=ranges, keep_float=keep_float, memory_cap=cap, limit=limit,
                preprocessing=preprocessing, fold_preprocessing=fold, max_drop=_points(max_drop), labelled=labelled,
                logits=logits, metric=metric, placement=placement, shapes=shapes, allow_slower=allow_slower,
                clocked=speeds.append, compiled=engines.append, force=force, progress=progress,
            )  # fmt: skip
    except GateFailed as error:
        if as_json:
            click.echo(json.dumps({"output": None, "error": to_json(error), **error.measured}))
        raise
    step = result.history[-1]
    before, after = stored(model), stored(output)
    warnings = [*_far_off(step.options, model, output), *_no_gain(result, model, output, before, after, speeds)]
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        told = {"output": str(output), "bytes": after, "bytes before": before, **step.options, "warnings": warnings}
        told |= {"speed": speeds[0].to_json()} if speeds else {}
        told |= {"as compiled": engines[0].to_json()} if engines else {}
        click.echo(json.dumps(told))
        return
    found = step.options
    click.echo(
        f"{output}: {after / 1e6:.2f} MB (was {before / 1e6:.2f} MB), {scheme} for {found['target']}{_on(found)}"
    )
    for line in (*_decided(found), *engines):
        click.echo(line)
    for speed in speeds:
        _echo_speed(speed, smaller=after < before)
    if "max drop" in found:
        _echo_search(found["max drop"])


def _far_off(found: Mapping[str, Any], model: Path, output: Path) -> Iterator[str]:
    """That outputs are far from the float model's, what that means, and what to do next."""
    far = found.get(JUDGED, {}).get("far off", ())
    if not far or "max drop" in found:  # what labelled data proved says more
        return
    each = ", ".join(f"{x['output']!r} {x['SQNR (dB)']:g} dB (largest error {x['largest error']:g})" for x in far[:3])
    more = f", and {len(far) - 3} more" if len(far) > 3 else ""
    why = f"edgerun why-wrong {model} {output} --data DATA: which layers lose it"
    lines = [
        f"outputs are far from the float model's on the calibration data, by SQNR: {each}{more}",
        "under 15 dB more than 3 % of their power is error: a measure of outputs, not of accuracy, which may be lost",
        f"edgerun compare {model} {output} --data DATA: how far on data of your own",
        f"edgerun eval {output} --baseline {model} --data LABELLED: what that costs in accuracy",
        *[why] * (found["scheme"] == "w8a8" and output.suffix == ".onnx"),
        "edgerun compress … --max-drop POINTS --labelled LABELLED: layers stay in float until less is surely lost",
    ]
    yield "\n  ".join(lines)


def _no_gain(
    result: Model, model: Path, output: Path, before: int, after: int, speeds: Iterable[Speed]
) -> Iterator[str]:
    """That the file is larger, or hardly smaller and not surely faster, and what of it are weights."""
    answers = {speed.answer for speed in speeds}
    if after <= before and ("faster" in answers or after < SMALLER * before):
        return
    from edgerun import external, registry
    from edgerun.cli._table import size
    from edgerun.passes import Faster

    own, had = output.with_suffix(".bin"), _weight_bytes(model)
    weights = own.stat().st_size if output.suffix == ".xml" else external.weight_bytes(result.ir)
    change = f"larger than the {size(before)} before"
    if after <= before:
        change = f"{100 * (before - after) / before:.2g} % smaller than the {size(before)} before"
    promised = isinstance(registry.quantizer(result.history[-1].name.rpartition("/")[2]), Faster)
    told = f"{change}, and its time was not taken" if promised else f"nothing was gained: {change}, and no faster"
    if answers - {"not timed"}:
        told = change if "faster" in answers else f"nothing was gained: {change}, and not surely faster"
    if weights >= had:
        why = "they were smaller before" if weights * SMALLER > had else "they were as small before, or stay in float"
        yield f"{told}: its weights took {size(had)} and take {size(weights)}: {why}"
    elif after <= before:
        yield f"{told}: of its {size(had)} of weights the scheme makes {size(had - weights)} less"
    else:
        yield (
            f"{told}: of {size(after)} only {size(weights)} are weights; the other {size(after - weights)} say in "
            f"{output.suffix} what is computed and how it was made, which so few weights do not make up for"
        )


def _weight_bytes(model: Path) -> int:
    from edgerun import external
    from edgerun.model import Model

    return external.weight_bytes(Model.load(model).ir)


def _on(found: Mapping[str, Any]) -> str:
    return f" on {found['device']}" if "device" in found else ""


def _echo_speed(speed: Speed, *, smaller: bool) -> None:
    """What the clock said; what is less than hoped for goes to stderr."""
    click.echo(f"{speed}{', timed earlier' if speed.earlier else ''}", err=speed.speedup is None)
    if speed.answer in ("slower", "no difference"):
        told = "slower than fp32" if speed.answer == "slower" else "not surely faster than fp32"
        left = ": smaller is all that it surely is" if smaller else ""
        click.echo(f"{told}{left} (edgerun why-slow says where time goes)", err=True)
    if speed.speedup is not None and speed.reason:
        click.echo(f"timings are not kept, and will be taken again: {speed.reason}", err=True)
    if speed.kept:
        names = ", ".join(f"{name} ({why})" for name, why in speed.kept.items())
        click.echo(f"kept in float, since it is faster so: {names}")


def _points(text: str | None) -> float | None:
    """Points, with or without a percent sign: 0.5 and 0.5% are the same."""
    if text is None:
        return None
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number of points", param_hint="--max-drop") from None


def _echo_search(found: dict[str, Any]) -> None:
    """What was kept in float, what it costs, the drop, and what the proof took."""
    kept, (low, high) = found["kept float"], found["interval (points, 95 %)"]
    work = f": {', '.join(kept)} ({100 * sum(kept.values()):.0f} % of the work)" if kept else ""
    click.echo(f"{len(kept)} of {found['layers']} layers kept in float{work}")
    click.echo(
        f"{found['metric']}: drop {found['drop (points)']:.2f} points, {low:.2f} to {high:.2f} "
        f"(n={found['samples']}, 95 %), surely below {found['bound (points)']:g}"
    )
    if out := found["left out, in the calibration data"]:
        told = "labelled samples were left out: calibration sees them, and a drop looks smaller on them"
        click.echo(f"{out} {told}", err=True)
    tried = len({trial["kept"] for trial in found["trials"]})
    runs, passes = found["samples run"], found["samples run"] / found["samples"]
    click.echo(f"candidates tried: {tried}, on {runs} samples: {passes:.1f} passes over the labelled data")


def _decided(found: Mapping[str, Any]) -> Iterator[str]:
    """What the history tells, as lines; each scheme tells something else."""
    if "quantized activations" in found:
        floats = found.get("8-bit nodes")  # of FP8, which has no integers
        nodes = f"{found['integer nodes']} nodes on integers" if floats is None else f"{floats} nodes on 8-bit floats"
        yield f"{nodes}, {found['quantized activations']} activations quantized"
        corrected = "biases corrected" if found["bias correction"] else "biases as they were"
        yield f"ranges: {found['ranges']}, {corrected}, {len(found.get('equalized', ()))} chains equalized"
        if "recurrent layers" in found:
            yield f"recurrent layers: {_brief(found['recurrent layers'])}"
    else:
        left_out = ("target", "scheme", "random data", "calibration", "engine", "device", "steps", "max drop", SQNR,
                    JUDGED)  # fmt: skip
        told = {k: v for k, v in found.items() if k not in left_out}
        yield ", ".join(f"{k}: {_brief(v)}" for k, v in told.items() if not isinstance(v, Mapping))
        yield from (f"{k}: {_brief(v)}" for k, v in told.items() if isinstance(v, Mapping))
    if "engine" in found:
        yield f"engine {found['engine']}; the graph itself was run on ONNX Runtime and agrees with the reference"
    if SQNR in found:
        judged = found[JUDGED]
        low, high = judged["interval (dB, 95 %)"] or (None, None)
        ends = "" if low is None else f", {low:.1f} to {high:.1f}"
        n = f"n={judged['samples']}{', 95 %' if ends else ''}"
        few = "; so few samples say little of others" if _few(found) else ""
        yield f"on the calibration data: SQNR {found[SQNR]:.1f} dB to the float model{ends} ({n}){few}"


def _few(found: Mapping[str, Any]) -> bool:
    """Whether so few samples set the ranges that what is lost of them is no measure of others: 16 to 20 dB on new ones
    where three had 50 dB."""
    from edgerun.adequacy import FEW

    told = found.get("calibration", {})  # of a scheme that takes nothing from it, not how much there was
    return "samples" in told and told["samples"] - told["duplicates"] < FEW


def _brief(value: Any) -> str:
    """A list of names as their number; numbers as they are."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_brief(part)}" for key, part in value.items())
    if not isinstance(value, list):
        return str(value)
    names = any(isinstance(item, str) for item in value)
    return str(len(value)) if names or not value else " and ".join(map(str, value))
