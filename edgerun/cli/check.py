"""`edgerun check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgerun.cli import _options

if TYPE_CHECKING:
    from edgerun.measure.stats import Estimate
    from edgerun.verbs.check import Check
    from edgerun.verbs.fallbacks import Fallback


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", metavar="NAME", help="What shall run it (onnxruntime, or the device's).")
@_options.device
@_options.extra
@click.option(
    "--size", "sizes", multiple=True, metavar="NAME=LEAST,USUAL,MOST",
    help="The sizes of an open dimension, for targets that build an engine to look. Repeatable.",
)  # fmt: skip
@click.option(
    "--strict",
    is_flag=True,
    help="No node between Q/DQ may run in float or saturate, none beside what --option asks for, and it must fit into "
    "the device's memory: else exit 1.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Samples in a run (1), for the memory of --device.")
@click.option("--subgraph", type=click.Path(path_type=Path), metavar="PART.onnx",
              help="Write the smallest part that still fails.")  # fmt: skip
@click.option("--fix", type=click.Path(path_type=Path), metavar="FIXED.onnx",
              help="Write the model rewritten so that all of it runs, if it computes the same.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (times in seconds).")
def command(
    model: Path, target: str | None, device: str | None, extra: dict[str, str], sizes: tuple[str, ...], strict: bool,
    batch: int | None,
    subgraph: Path | None, fix: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Tell which nodes a target or a device does not run, or runs in float, or which saturate there, and why.

    With a provider or hardware (--option PROVIDER=CUDA, --device GPU) also those that it leaves to the CPU.
    TensorRT builds an engine too and keeps none, for the device's GPU where the library here can: seconds, for large
    models minutes.
    Exit 1 when a node does not run, unless --fix wrote a model of which all nodes do.
    """
    from edgerun.cli._progress import Stages
    from edgerun.cli._table import echo_json, echo_notes
    from edgerun.runtime import Options
    from edgerun.runtime.progress import told
    from edgerun.verbs.check import check

    options = Options(extra=extra, sizes=_options.sizes(sizes))
    with Stages(notes=False) as show, told(show):
        found = check(
            model, target=target, device=device, options=options, strict=strict, batch=batch, part=subgraph, fix=fix,
            force=force,
        )  # fmt: skip
    echo_notes(found.notes)
    if as_json:
        echo_json(found)
    else:
        _echo(found, fix)
    if subgraph is not None and found.part is None:
        why = "no node fails, but the opset or IR version" if found.refused else "nothing fails"
        click.echo(f"{why}, so no part was written", err=True)
    found.require(strict)


def _echo(found: Check, fix: Path | None) -> None:
    where = f"{found.target} on {found.device}" if found.device else found.target
    where += f" with {found.hardware}" if found.hardware else ""
    for issue in found.refused:
        click.echo(f"does not run: {f'{issue.node} ({issue.op}): ' if issue.node else ''}{issue.reason}")
    for issue in found.left or ():
        click.echo(f"not on {found.hardware}: {issue.node} ({issue.op}): {issue.reason}")
    by_reason: dict[str, list[Fallback]] = {}
    for node in found.fell_back or ():
        by_reason.setdefault(node.reason, []).append(node)
    for reason, nodes in by_reason.items():
        click.echo(f"in float ({len(nodes)} of {found.products} products between Q/DQ): {reason}")
        for node in nodes:
            click.echo(f"  {node.node} ({node.op}){_cost(node)}")
    if found.saturating:
        from edgerun.verbs.saturating import remedy, told

        click.echo(f"{told(found.saturating, where)}: it adds two u8·s8 products in 16 bits")
        for layer in found.saturating:
            click.echo(f"  {layer.node} ({layer.op}): {layer.channels} of {layer.total} channels")
        click.echo(f"  do: {remedy(found.device, found.target)}")
    if found.memory is not None and not found.memory.fits:
        click.echo(f"does not fit: {found.memory.told()}")
    if found.fix is None and found.unfixed is None:
        for idea in found.ideas:
            click.echo(f"--fix would try: {idea}")
    if found.advice is not None:
        click.echo(f"what helps: {found.advice}")
    if found.part is not None:
        click.echo(f"{found.part.path}: the smallest part that fails: {', '.join(found.part.ops)}")
    if found.fix is not None:
        for line in found.fix.rewritten:
            click.echo(f"rewritten: {line}")
        c, state = found.fix.check, "taken" if found.idle else "runs"
        click.echo(
            f"{found.fix.path}: {state}; compared with the original ({c.reference}) on {c.runs} draws, run on "
            f"{found.fix.ran}: relative error {c.relative_error:.2g}"
        )
    elif found.unfixed is not None:
        click.echo(f"not rewritten: {found.unfixed}")
    elif not found.refused:
        left = f", {len(found.left)} of them not on {found.hardware}" if found.left else ""
        built = f", and built for {found.built}" if found.built else ""
        click.echo(f"{found.model}: {_all(found)} {where}{built}{left}{_integers(found)}")
        if fix is not None:
            click.echo(f"nothing was rewritten, so nothing was written: {_unwritten(found)}", err=True)


def _unwritten(found: Check) -> str:
    """Why --fix had nothing to do, and what would help."""
    looked = f"--fix rewrites nodes that {found.target} refuses, and it refuses none of {found.nodes}"
    if not found.fell_back:
        return looked
    return (
        f"{looked}; what runs in float is placed anew by edgerun compress --target {found.target}, from the float model"
    )


def _all(found: Check) -> str:
    one = found.nodes == 1
    nodes = "the one node" if one else f"all {found.nodes} nodes"
    if found.idle:
        return f"{nodes} {'is' if one else 'are'} taken by"
    return f"{nodes} {'runs' if one else 'run'} on"


def _integers(found: Check) -> str:
    if not found.products or found.fell_back is None:
        return ""
    count = found.products - len(found.fell_back) - len(found.unseen)
    unseen = f", {len(found.unseen)} unknown" if found.unseen else ""
    return f", {count} of {found.products} products between Q/DQ on integers{unseen}"


def _cost(node: Fallback) -> str:
    if node.seconds is None:
        return ""
    if node.share is None:
        return ": less than the profiler can tell"
    return f": {_span(node.seconds, 1e6)} µs, {_span(node.share, 100)} % of a run (9 sessions, one thread)"


def _span(estimate: Estimate, factor: float) -> str:
    value, low, high = (factor * x for x in (estimate.value, estimate.interval.low, estimate.interval.high))
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
