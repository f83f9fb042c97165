"""The command line: a file per command (its name, `_` written as `-`); a command parses, calls a verb and prints."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import click

from edgerun import __all__ as OFFERED
from edgerun import __version__, _late, distribution, files
from edgerun.errors import EdgerunError, Unsupported, out_of_memory

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class Commands(click.Group):
    """Finds commands as modules of this package; imports one only when it is asked for, or for its help line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
        return sorted(name.replace("_", "-") for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            verb = cmd_name.replace("-", "_")
            if verb in OFFERED and verb.islower() and distribution.lacks(f"verbs.{verb}"):
                raise distribution.absent(f"edgerun {cmd_name}")
            return None
        command: click.Command = importlib.import_module(f"edgerun.cli.{cmd_name.replace('-', '_')}").command
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgerun")
def edgerun() -> None:
    """Bring a trained model in, make it small and fast for one device, and prove it.

    Exit codes: 0 yes, 1 the answer is no (a gate failed), 2 misuse, 3 not supported here.
    """


def main() -> None:
    """Run the command line; an EdgerunError, or want of memory, is printed without a traceback, with its exit code."""
    _late.load_late()
    _late.end_at_once()
    try:
        edgerun.main(standalone_mode=False, prog_name="edgerun")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        exec("")  # else `python -m` dies of the signal, where text was being executed (a dataclass made)
        there = ", ".join(map(str, files.placed()))
        click.echo(f"interrupted: {f'{there} had been written' if there else 'nothing was written'}", err=True)
        sys.exit(130)
    except EdgerunError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if not out_of_memory(error):
            raise
        short = Unsupported("there is not enough memory for this", do="free some, or take a larger machine")
        click.echo(f"error: {short}", err=True)
        sys.exit(short.exit_code)
