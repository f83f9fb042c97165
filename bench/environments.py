"""The virtual environments that the peers run in: one for each requirements file, made when absent."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from bench.cells import digest
from bench.processes import measured
from edgerun.errors import EdgerunError

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Environment:
    """What is installed, and the peers that compile something when they are first loaded."""

    requirements: Path
    compile: tuple[str, ...] = ()


ENVIRONMENTS = {
    "peers": Environment(HERE / "requirements-peers.txt"),
    "vendors": Environment(HERE / "requirements-vendors.txt", compile=("quark",)),
}


def made(environment: Environment, folder: Path) -> Path:
    """The Python of `environment` in `folder`; made anew when absent or when the requirements changed.

    A peer that compiles on first load does it here, so that no measured run does. One that cannot is told of, and its
    rows will say why it makes no model.
    """
    python, stamp = folder / "bin" / "python", folder / "made-from"
    if not stamp.exists() or stamp.read_text() != digest(environment.requirements):
        click.echo(f"making the peers' environment in {folder}", err=True)
        measured([sys.executable, "-m", "venv", "--clear", str(folder)], HERE)
        measured([str(python), "-m", "pip", "install", "-q", "-r", str(environment.requirements)], HERE)
        for peer in environment.compile:
            try:
                measured([str(python), "-c", f"import peers; peers.load({peer!r})"], HERE)
            except EdgerunError as error:
                click.echo(f"{peer} does not load: {error.got}", err=True)
        stamp.write_text(digest(environment.requirements))
    return python
