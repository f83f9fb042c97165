"""Writes docs/cli.md from the command line's own help: `make docs`. A test fails while the two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerun import files
from edgerun.cli import edgerun

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100
HEAD = """# The command line

Written by `make docs` from the commands' own help; a test fails while the two differ.

Same word order everywhere: `edgerun VERB INPUT -o OUTPUT --options`. Results go to stdout, progress and notes to
stderr.
Nothing is overwritten without `--force`, and a run that was stopped leaves the old file or the new one, never half.
`MODEL@TARGET` says what runs a model where the file's kind does not: `small.onnx@openvino`.

| exit code | means |
|---|---|
| 0 | yes: done, or the gate passed |
| 1 | the answer is no: a conversion's comparison, an accuracy gate or a speed gate failed |
| 2 | misuse: a wrong option, path, file or name; the message says what was got, what is wanted and what to do |
| 3 | not supported here: valid, but this machine, target or version cannot do it |
| 130 | interrupted: nothing was written |
"""


def page() -> str:
    """The whole page: every command's help as a user sees it, 100 columns wide."""
    shown: dict[str, Any] = {"resilient_parsing": True, "terminal_width": WIDTH, "max_content_width": WIDTH}
    top = edgerun.make_context("edgerun", [], **shown)
    parts = [HEAD, _section("edgerun", edgerun.get_help(top))]
    for name in edgerun.list_commands(top):
        command = edgerun.get_command(top, name)
        assert command is not None
        context = command.make_context(name, [], parent=top, **shown)
        parts.append(_section(f"edgerun {name}", command.get_help(context)))
    return "\n".join(parts)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    files.write_bytes(PAGE, page().encode())
    print(PAGE)
