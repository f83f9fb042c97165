"""`edgerun why-slow`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("fp32", metavar="FP32")
@click.argument("int8", metavar="INT8")
@click.option("--target", help="What runs both; default: by the kind of the second file.")
@click.option("--device", metavar="NAME|FILE.toml", help="Refuse to time anywhere but there; its target, unless named.")
@click.option("--data", help="The feed is the first batch of it; default: seeded noise.")
@click.option("--batch", type=click.IntRange(min=1), help="Samples per run, where the models leave it open (1).")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 (default): the quota.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=20.0, show_default=True,
              help="Time and profile for about so long. On top come nine times opening both, the fewest profiled runs "
              "and reading profiles: 15 s or more for a small model, over a minute for a ResNet-50.")  # fmt: skip
@click.option("--input-shape", "shapes", multiple=True, metavar="NAME:[DIMS]",
              help="Fixes dynamic dimensions, as image:[1,3,224,224].")  # fmt: skip
@click.option(
    "--preprocessing", type=click.Path(path_type=Path), help="A file of the contract for a folder of pictures."
)
@click.option("--top", type=click.IntRange(min=0), default=15, show_default=True, help="Show so many regions.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON (times in seconds).")
def command(
    fp32: str, int8: str, target: str | None, device: str | None, data: str | None, batch: int | None, threads: int,
    seconds: float, shapes: tuple[str, ...], preprocessing: Path | None, top: int, as_json: bool,
) -> None:  # fmt: skip
    """Say where a quantized model wins and loses time against its float model, kernel by kernel.

    Both are timed and profiled in turns; their kernels are aligned by the model's nodes, and the measured difference
    is given to causes: faster integer kernels, Q/DQ conversions, reorders, lost fusions, float ops, more nodes.
    """
    from edgerun.cli._table import echo_json, echo_notes, progress, table
    from edgerun.runtime import Options
    from edgerun.verbs.why_slow import why_slow

    with progress("timing and profiling") as show:
        found = why_slow(
            fp32, int8, target=target, device=device, options=Options(threads), data=data, preprocessing=preprocessing,
            batch=batch, shapes=shapes, seconds=seconds, progress=show,
        )  # fmt: skip
    echo_notes(found.notes)
    if as_json:
        echo_json(found)
        return

    def us(value: float) -> str:
        return f"{1e6 * value:.1f}"

    def span(low: float, high: float, factor: float = 1e6) -> str:
        return f"[{factor * low:.1f}, {factor * high:.1f}]"

    rows = []
    for part in sorted(found.difference.parts, key=lambda p: -abs(p.saved.value))[:top]:
        kernels = part.after or part.before
        where = f"{part.nodes[0]} +{len(part.nodes) - 1}" if len(part.nodes) > 1 else "".join(part.nodes)
        rows.append(
            [where or kernels[0].node, " ".join(dict.fromkeys(k.op for k in kernels)), us(part.before_seconds),
             us(part.after_seconds), us(part.saved.value), span(part.saved.interval.low, part.saved.interval.high),
             part.cause]
        )  # fmt: skip
    if rows:
        click.echo(table(["region (nodes)", "kernels", "fp32 µs", "INT8 µs", "saved µs", "[95 %]", "cause"], rows))
        click.echo(f"{len(rows)} of {len(found.difference.parts)} regions, by size; saved below 0 is lost\n")
    causes = [[c, us(e.value), span(e.interval.low, e.interval.high)] for c, e in found.difference.causes.items()]
    rest = found.difference.unexplained
    causes.append(["unexplained", us(rest.value), span(rest.interval.low, rest.interval.high)])
    click.echo(table(["cause", "saved µs", "[95 %]"], causes))
    click.echo()
    for line in found.summary():
        click.echo(line)
    for hint in found.hints:
        click.echo(f"hint: {hint}")
