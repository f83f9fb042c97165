"""What several commands are told in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def extra(function: Command) -> Command:
    """`--option KEY=VALUE`, repeatable: the target's own keys, as a dictionary `extra`."""
    return click.option(
        "--option", "extra", multiple=True, metavar="KEY=VALUE", callback=_pairs,
        help="An option of the target's own, as PROVIDER=CUDA. Repeatable.",
    )(function)  # fmt: skip


def _pairs(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        if key in found:
            raise click.BadParameter(f"{key} is given twice")
        found[key] = value
    return found
