"""`edgerun targets`."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--devices", "list_devices", is_flag=True, help="List the known devices, each fact with its source.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(list_devices: bool, as_json: bool) -> None:
    """Show what can run here, with versions and limits, or why not."""
    from dataclasses import asdict

    from edgerun.verbs.targets import devices, targets

    if list_devices:
        known = devices()
        if as_json:
            click.echo(json.dumps([asdict(device) for device in known]))
            return
        for device in known:
            click.echo(f"{device.name}: {device.summary}")
            for name, fact in device.facts.items():
                value = ", ".join(map(str, fact.value)) if isinstance(fact.value, list) else fact.value
                click.echo(f"  {name:<12}{value}  ({fact.source})")
        return
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
