"""How commands print: plain tables, JSON, progress on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; the first one flush left, the others flush right."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    texts = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        texts.append("  ".join([line[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(texts)


def stored(model: Path) -> int:
    """Bytes of a model's file and of those beside it that hold its weights."""
    from edgerun import guard

    beside = {".xml": lambda: [model.with_suffix(".bin")], ".onnx": lambda: guard.beside(model)}
    return sum(file.stat().st_size for file in (model, *beside.get(model.suffix, list)()))


def echo_json(value: Any) -> None:
    """Print a dataclass or a mapping as JSON; a number that is not finite becomes null."""
    click.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def echo_notes(notes: Sequence[str]) -> None:
    """Print what a user must know about the data to stderr."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


@contextmanager
def progress(label: str, checked: bool = False) -> Iterator[Callable[[float], None]]:
    """How far it is, on stderr; yields a function that takes the share done, 0..1. Where models are `checked` first,
    that and what it found are told, too."""
    from edgerun.cli._progress import Stages
    from edgerun.runtime.progress import told

    with Stages(percent=True, notes=checked) as stages, told(stages):
        stages(label, 0, 100)
        yield lambda share: stages(label, int(share * 100), 100)


@contextmanager
def comparing(checked: bool) -> Iterator[None]:
    """Where a model is `checked` before it runs, that and what it found are told on stderr."""
    from edgerun.cli._progress import Stages
    from edgerun.runtime.progress import told

    if not checked:
        yield
        return
    with Stages() as stages, told(stages):
        yield


def size(count: float) -> str:
    """Bytes as text with a decimal unit: 3.5 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
