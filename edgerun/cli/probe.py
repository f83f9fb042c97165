"""`edgerun probe`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .toml file to write; default: print it.")
@click.option("--target", metavar="NAME", help="Whose versions, schemes and limits; default: the known device's, or "
              "onnxruntime.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(output: Path | None, target: str | None, force: bool, as_json: bool) -> None:
    """Write down what this machine is, each fact with where it was read: for --device FILE.toml elsewhere."""
    from dataclasses import asdict

    from edgerun import files
    from edgerun.errors import EdgerunError
    from edgerun.verbs.devices import probe

    if output is not None:
        if output.suffix != ".toml":
            raise EdgerunError("a device is a TOML file", got=output.name, wanted="-o NAME.toml")
        files.refuse_overwrite(output, force)
    device = probe(target)
    if output is not None:
        files.write_bytes(output, device.toml().encode())
    if as_json:
        click.echo(json.dumps(asdict(device), ensure_ascii=False))
    elif output is None:
        click.echo(device.toml(), nl=False)
    else:
        click.echo(f"{output}: {device.summary}, {len(device.facts)} facts")
