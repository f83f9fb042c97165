"""`edgerun devices`."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("name", metavar="[NAME|FILE.toml]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """Show the devices that are known; of one, every fact with its source.

    What stands here is what --device means: the target, the instruction sets that its rules follow, the newest opset
    and IR version that may be written. `edgerun probe` writes such a file for the machine it runs on.
    """
    from dataclasses import asdict

    from edgerun import devices
    from edgerun.cli._table import table

    if name is not None:
        device = devices.find(name)
        if as_json:
            click.echo(json.dumps(asdict(device), ensure_ascii=False))
            return
        click.echo(f"{device.name}: {device.summary}")
        for key, fact in device.facts.items():
            click.echo(f"  {key:<13}{_text(fact.value)}  ({fact.source})")
        return
    known = devices.known()
    if as_json:
        click.echo(json.dumps([asdict(device) for device in known], ensure_ascii=False))
        return
    keys = ("arch", "isa", "target", "opset", "schemes")
    rows = [[d.name, *(_text(d.value(key, "")) for key in keys), d.summary] for d in known]
    click.echo(table(["device", *keys, "what"], rows))


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
