"""`edgerun warm`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The engine to write; default: beside the recipe."
)
@click.option("--force", is_flag=True, help="Compile again, whatever is there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was compared as JSON.")
def command(recipe: Path, output: Path | None, force: bool, as_json: bool) -> None:
    """Finish a build recipe on the device that it is for (edgerun compile … -o NAME.recipe).

    The engine is compiled here, run on the recipe's feeds, compared with the reference's outputs, and written when they
    agree. One that is there already and still agrees is left as it is.
    """
    from dataclasses import asdict

    from edgerun.cli import _options
    from edgerun.cli._progress import Stages
    from edgerun.cli._table import echo_json, size
    from edgerun.runtime.progress import told
    from edgerun.verbs.warm import warm

    with Stages(percent=True) as show, told(show):
        made = warm(recipe, output, force=force)
    if as_json:
        echo_json({**asdict(made), "output": str(made.output)})
        return
    state = "compiled here" if made.compiled else "was there, and is right"
    click.echo(f"{made.output}: {size(made.output.stat().st_size)}, for {made.target}, {state}")
    _options.echo_check(made.check)
