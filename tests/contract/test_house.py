"""The house rules that a tool can check: format, lint, import directions, types, file sizes, words."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgerun

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FOLDERS = ("edgerun", "converters", "quantize", "targets", "tests", "bench", "docs")
LONGEST = 300  # lines of one file
# Names that say nothing about what is done.
VAGUE = re.compile(r"\b(?:class|def) \w*(?:manager|handler|helper|utils?)\b", re.IGNORECASE)
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|raise NotImplementedError)\b")


def _sources() -> list[Path]:
    """Every Python file once: the three links inside edgerun/ are not followed."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("ruff", "format", "--check", "."), id="format"),
        pytest.param(("ruff", "check", "."), id="lint"),
        pytest.param(("lint-imports", "--no-logo", "--no-cache"), id="imports"),
        pytest.param(("mypy",), id="types"),
    ],
)
def test_the_tools_agree(command: tuple[str, ...]) -> None:
    tool = BIN / command[0]
    if not tool.exists():
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[dev]'")
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_files_are_short() -> None:
    long = {path.relative_to(ROOT): n for path in _sources() if (n := len(path.read_text().splitlines())) > LONGEST}
    assert not long


def test_names_say_what_is_done() -> None:
    vague = [
        f"{path.relative_to(ROOT)}: {hit.group()}" for path in _sources() if (hit := VAGUE.search(path.read_text()))
    ]
    files = [path for path in _sources() if re.search("manager|handler|helper|utils", path.stem)]
    assert not vague and not files


def test_nothing_is_left_unfinished() -> None:
    here = Path(__file__)
    assert not [path for path in _sources() if path != here and UNFINISHED.search(path.read_text())]


def test_every_file_says_what_it_is_for() -> None:
    silent = [path for path in _sources() if not path.read_text().startswith(('"""', "#!"))]
    assert not silent


def test_the_set_up_is_two_commands() -> None:
    made = subprocess.run(["make", "-n", "test", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0 and "-m pytest" in made.stdout and "-m bench.demo" in made.stdout
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 and "make test" in script.read_text()


def test_every_public_name_is_there() -> None:
    assert all(getattr(edgerun, name) is not None for name in edgerun.__all__)
    with pytest.raises(AttributeError, match="quantise"):
        _ = edgerun.quantise
    project = importlib.import_module("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == edgerun.__version__ == importlib.metadata.version("edgerun")
