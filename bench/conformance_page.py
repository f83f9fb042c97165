"""docs/conformance.md from results/conformance.json."""

from __future__ import annotations

from typing import Any


def write(kept: dict[str, Any]) -> None:
    print({t: v["count"] for t, v in kept["targets"].items()})
