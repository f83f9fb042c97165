"""What several commands are told in one way."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgerun.runtime import SelfCheck

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


def device(function: Command) -> Command:
    """`--device`: a board, or hardware in the target's own word (`edgerun.verbs.load`), as a name `device`."""
    return click.option(
        "--device", metavar="NAME|FILE.toml", help="A board, whose target runs it; or the target's own word, as GPU."
    )(function)


def checked(function: Command) -> Command:
    """`--checked`: as `edgerun.load` has it."""
    return click.option(
        "--checked", is_flag=True,
        help="Compare the .onnx with the reference before it runs, once for its content; exit 1 where it differs.",
    )(function)  # fmt: skip


def metric(what: str, beside: str) -> Callable[[Command], Command]:
    """`--metric NAME`, as `edgerun.verbs.scoring` has it; `beside` is the model that it may compare with."""
    return click.option(
        "--metric", metavar="NAME",
        help=f"{what}: top1 (default), top5, binary, binary_logits (one number a sample); without labels agreement (of "
        f"classes) or boxes (of a detector), with {beside}; or module:callable, (outputs, labels) -> scores 0..1, of "
        "which the second are that model's outputs where there are no labels.",
    )  # fmt: skip


def max_rss(function: Command) -> Command:
    """`--max-rss SIZE`: bytes, as a number `max_rss`; 0 where nothing is said."""
    return click.option(
        "--max-rss", default="0", metavar="SIZE", callback=_bytes,
        help="Exit 1 if the process holds more memory than this, as 200MB or 1.5GiB; keep below it where possible.",
    )(function)  # fmt: skip


def _bytes(ctx: click.Context, parameter: click.Parameter, given: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kMG])(i?)B?|B)?", given.strip(), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{given!r} is no size, as 200MB or 1.5GiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmg".index((unit or " ").lower()))


def sizes(given: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`NAME=LEAST,USUAL,MOST` as `Options.sizes` has them."""
    found = dict[str, tuple[int, ...]]()
    for text in given:
        name, _, numbers = text.rpartition("=")
        parts = numbers.split(",")
        if not name or len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
            raise click.BadParameter(f"{text!r} is not NAME=LEAST,USUAL,MOST, as seq=1,128,512", param_hint="--size")
        found[name] = (*found.get(name, ()), *map(int, parts))
    return found


def usual(given: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`NAME:[DIMS]` as `Options.usual` has them."""
    from edgerun.runtime import TensorSpec

    found = {}
    for text in given:
        spec = TensorSpec.parse(text)
        if not spec.name or any(isinstance(dim, str) for dim in spec.shape):
            raise click.BadParameter(f"{text!r} is not NAME:[1,3,224,224]", param_hint="--input-shape")
        found[spec.name] = tuple(int(dim) for dim in spec.shape)
    return found


def echo_check(check: SelfCheck) -> None:
    """What the comparison with the reference said."""
    if not check.runs:
        click.echo(f"nothing was compared with {check.reference}: every output is empty, or not finite, on these feeds")
        return
    click.echo(
        f"compared with {check.reference} on {check.runs} feeds: relative error {check.relative_error:.2g}, "
        f"SQNR {check.sqnr_db:.1f} dB (worst output {check.worst!r})"
    )
