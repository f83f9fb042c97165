"""What was timed, kept by content: the same models on the same device are timed once, and a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgerun import files
from edgerun.errors import EdgerunError


def folder() -> Path:
    """Where timings are kept: `clock` in $EDGERUN_CACHE, else in $XDG_CACHE_HOME/edgerun or ~/.cache/edgerun."""
    if own := os.environ.get("EDGERUN_CACHE"):
        return Path(own) / "clock"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "edgerun" / "clock"


class Timings:
    """JSON values by label, in one file that is named after the SHA-256 of `key` and rewritten with every `put`.

    A file that is damaged counts as absent. Where the folder cannot be written, `lost` says why, and values last as
    long as the object.
    """

    def __init__(self, key: Mapping[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True)
        self._path = folder() / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        self.lost = ""
        self._values: dict[str, Any] = {"key": dict(key)}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("key") == json.loads(text):
                self._values = found
        except (OSError, ValueError):
            pass

    def get(self, label: str) -> Any:
        """The value of `label`, or None."""
        return self._values.get(label)

    def put(self, label: str, value: Any) -> None:
        """Keep `value` under `label`."""
        self._values[label] = value
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(self._path, json.dumps(self._values, sort_keys=True).encode())
        except (OSError, EdgerunError) as error:
            self.lost = str(error)
