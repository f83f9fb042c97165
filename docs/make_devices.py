"""Writes docs/devices.md from targets/devices: `make docs`. A test fails while the two differ."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgerun import devices, files
from edgerun.devices import KEYS, Device

PAGE = Path(__file__).with_name("devices.md")
COLUMNS = ("arch", "isa", "cores", "memory_gib", "target", "schemes", "opset", "ir_version")
HEAD = """# Devices

Written by `make docs` from `targets/devices/*.toml`; a test fails while the two differ. What `--device NAME` means to
`compress`, `convert`, `check` and `bench` stands in [how it works](how-it-works.md#devices). Every fact names its
source below, and in `edgerun devices NAME`; what has no source is left out. An empty cell is not known, or differs by
variant; an empty opset is that of the version of the runtime that is installed.

"""


def page() -> str:
    """The whole page: one table of all devices, what the facts are called, and each device with its sources."""
    known = devices.known()
    rows = [_row(("device", *COLUMNS)), _row("---" for _ in range(len(COLUMNS) + 1))]
    rows += [_row((f"[{d.name}](#{d.name})", *(_text(d.value(key, "")) for key in COLUMNS))) for d in known]
    facts = [_row(("fact", "what it is")), _row(("---", "---"))]
    facts += [_row((f"`{key}`", what)) for key, (_, what) in KEYS.items()]
    parts = ["\n".join(rows), "## Facts\n\n" + "\n".join(facts), *map(_section, known)]
    return HEAD + "\n\n".join(parts) + "\n"


def _section(device: Device) -> str:
    rows = [_row(("fact", "value", "source")), _row(("---", "---", "---"))]
    rows += [_row((key, _text(fact.value), fact.source)) for key, fact in device.facts.items()]
    return f"## {device.name}\n\n{device.summary}.\n\n" + "\n".join(rows)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    files.write_bytes(PAGE, page().encode())
    print(PAGE)
