"""`edgerun targets`."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show what can run here, with versions, limits and options, or why not."""
    from dataclasses import asdict

    from edgerun.verbs.targets import targets

    found = targets()
    if as_json:
        click.echo(json.dumps([asdict(target) for target in found]))
        return
    for target in found:
        if target.reason:
            click.echo(f"{target.name:<14}unavailable: {target.reason}")
            continue
        here = dict(target.device or {})
        click.echo(f"{target.name:<14}{here.pop('version', '')}: {target.summary}")
        if target.only_compiles:
            click.echo(f"{'':<14}compiles here, runs elsewhere: {target.only_compiles}")
        click.echo(f"{'':<14}reads IR <= {target.ir_version}, opset <= {target.opset}; {', '.join(target.suffixes)}")
        click.echo(f"{'':<14}schemes {', '.join(target.schemes)}")
        click.echo(f"{'':<14}" + ", ".join(f"{k} {v}" for k, v in here.items() if v))
        for option, effect in target.options.items():
            click.echo(f"{'':<16}--option {option}: {effect}")
