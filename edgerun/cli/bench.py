"""`edgerun bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgerun.cli import _options

if TYPE_CHECKING:
    from edgerun.measure.stats import Estimate


@click.command()
@click.argument("models", metavar="MODEL[@TARGET]...", nargs=-1, required=True)
@click.option("--target", help="What runs the models; default: by the file's kind.")
@click.option("--device", metavar="NAME|FILE.toml", help="Refuse to time anywhere but there; its target, unless named.")
@click.option("--data", help="The feed is the first batch of it; default: seeded noise.")
@click.option("--batch", type=click.IntRange(min=1), help="Samples per run, where the models leave it open (1).")
@click.option("--throughput", is_flag=True, help="Runs a second of streams, in place of one run after the other.")
@click.option(
    "--streams", type=click.IntRange(min=1), help="With --throughput: runs at once; default: as many as threads."
)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 (default): the quota.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
              help="Measure at most about so long, all models together.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=1), default=108, show_default=True, help="At most so many rounds.")
@click.option("--input-shape", "shapes", multiple=True, metavar="NAME:[DIMS]",
              help="Fixes dynamic dimensions, as image:[1,3,224,224].")  # fmt: skip
@_options.extra
@_options.checked
@click.option(
    "--preprocessing", type=click.Path(path_type=Path), help="A file of the contract for a folder of pictures."
)
@click.option("--must-be-faster", is_flag=True, help="Exit 1 unless every further model is faster than the first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (times in seconds).")
def command(
    models: tuple[str, ...], target: str | None, device: str | None, data: str | None, batch: int | None,
    throughput: bool, streams: int | None, threads: int, seconds: float, rounds: int, shapes: tuple[str, ...],
    extra: dict[str, str], checked: bool, preprocessing: Path | None, must_be_faster: bool, as_json: bool,
) -> None:  # fmt: skip
    """Time models against each other, interleaved; the first is the baseline.

    Latency in ms with 95 % intervals; the speed-up is baseline time over model time, with the interval that decides
    the verdict. A model whose interval does not lie above 1 is not called an improvement.

    With --throughput, runs a second of a session that always has two runs a stream under way; the speed-up is their
    ratio, and latency is from taking a feed to handing over its outputs.
    """
    from edgerun.cli._table import echo_json, echo_notes, progress, table
    from edgerun.runtime import Options, machine
    from edgerun.verbs.benchmark import benchmark

    if streams and not throughput:
        raise click.UsageError("--streams goes with --throughput")
    options = Options(threads, extra, streams=streams or (machine.threads(threads) if throughput else 1))
    with progress("timing", checked) as show:
        result = benchmark(
            models, target=target, device=device, options=options, data=data, preprocessing=preprocessing, batch=batch,
            shapes=shapes, seconds=seconds, rounds=rounds, throughput=throughput, checked=checked, progress=show,
        )  # fmt: skip
    echo_notes(result.notes)
    if as_json:
        echo_json(result)
    else:
        rows = []
        for t in result.timings:
            times = [_estimate(q, 1e3) for q in (t.p50, t.p90, t.p99)]
            times[:0] = [_estimate(t.per_second)] if t.per_second else []
            s = t.speedup
            ratio = "1" if s is None else f"{s.value:.3f} [{s.interval.low:.3f}, {s.interval.high:.3f}]"
            rows.append([t.model, t.target, *times, ratio, t.verdict, str(t.runs)])
        heads = ["model", "target", *(["runs/s"] if throughput else []), "p50 ms", "p90 ms", "p99 ms", "speed-up"]
        click.echo(table([*heads, "verdict", "runs"], rows))
        told = "".join(f", {key}={value}" for key, value in extra.items())
        batch_text = "whole feeds" if result.batch is None else f"batch {result.batch}"
        feed = ", ".join(result.feed)
        streams_text = "/".join(map(str, dict.fromkeys(t.streams for t in result.timings)))
        threads_text = f"threads {threads or 'by the quota'}" + (f", {streams_text} streams" if throughput else "")
        click.echo(
            f"{batch_text}, {threads_text}, {result.sessions} sessions, {result.rounds} interleaved rounds, "
            f"fed {feed}{told}"
        )
        for t in result.not_faster:
            click.echo(f"not an improvement: {t.model} is not faster than {result.timings[0].model} ({t.verdict})")
    if must_be_faster:
        result.require_faster()


def _estimate(found: Estimate, factor: float = 1) -> str:
    low, high = factor * found.interval.low, factor * found.interval.high
    return f"{factor * found.value:.4g} [{low:.4g}, {high:.4g}]"
