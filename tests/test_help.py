"""What the command line tells about itself, and that the page in docs/ tells the same."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from edgerun.cli import edgerun

ROOT = Path(__file__).parents[1]
TOP = click.Context(edgerun, info_name="edgerun")
COMMANDS = edgerun.list_commands(TOP)


def _command(name: str) -> click.Command:
    found = edgerun.get_command(TOP, name)
    assert found is not None
    return found


def _options(name: str) -> dict[str, click.Option]:
    return {p.opts[-1]: p for p in _command(name).params if isinstance(p, click.Option)}


def _ran(*words: str, **environment: str) -> str:
    command = [str(Path(sys.executable).with_name("edgerun")), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout


def _maker(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli", "devices"])
def test_the_page_is_what_its_sources_say(page: str) -> None:
    assert (ROOT / "docs" / f"{page}.md").read_text() == _maker(f"make_{page}").page(), "run `make docs`"


def test_the_verbs_are_there() -> None:
    wanted = {
        "bench",
        "check",
        "compare",
        "compile",
        "compress",
        "convert",
        "devices",
        "eval",
        "inspect",
        "run",
        "targets",
    }
    assert wanted <= set(COMMANDS)
    told = _ran("--help")
    assert all(f"\n  {name} " in told for name in COMMANDS) and "Exit codes" in told
    assert _ran("-h") == told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_does(name: str) -> None:
    help_text = _command(name).help
    assert help_text and help_text.splitlines()[0].strip().endswith((".", "?"))
    silent = [option for option, parameter in _options(name).items() if not parameter.help]
    assert not silent


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manners_are_the_same_everywhere(name: str) -> None:
    options = _options(name)
    assert "--json" in options
    writes = "--fix" in options or ("--output" in options and "-o" in options["--output"].opts)
    assert writes == ("--force" in options), "what writes a model asks for --force"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_the_shell(shell: str) -> None:
    assert "_EDGERUN_COMPLETE" in _ran(_EDGERUN_COMPLETE=f"{shell}_source")


def test_completion_knows_commands_and_options() -> None:
    asked = {"_EDGERUN_COMPLETE": "bash_complete"}
    assert _ran(COMP_WORDS="edgerun comp", COMP_CWORD="1", **asked).split() == [
        "plain,compare",
        "plain,compile",
        "plain,compress",
    ]
    assert "plain,--calibration" in _ran(COMP_WORDS="edgerun compress --cal", COMP_CWORD="2", **asked)


def test_an_unknown_command_is_misuse() -> None:
    done = subprocess.run([sys.executable, "-m", "edgerun", "comprss"], capture_output=True, text=True)
    assert done.returncode == 2 and "comprss" in done.stderr and "Traceback" not in done.stderr


def _shown() -> list[str]:
    """Every `edgerun …` line that the README shows as a command."""
    lines = (ROOT / "README.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    edgerun ")]


def test_the_readme_shows_the_whole_way() -> None:
    assert {line.split()[1] for line in _shown()} >= {"convert", "compress", "compare", "eval", "bench", "run"}


@pytest.mark.parametrize("line", _shown())
def test_the_commands_in_the_readme_are_understood(line: str) -> None:
    _, name, *words = shlex.split(line)
    _command(name).make_context(name, words)
