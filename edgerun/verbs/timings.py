"""What was timed, kept by content: the same models on the same device are timed once, and a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgerun import cache
from edgerun.errors import EdgerunError

KIND = "clock"


class Timings:
    """JSON values by label, in one cache entry that is found by all of `key` and rewritten with every `put`.

    An entry that is damaged counts as absent. Where the cache cannot be written, `lost` says why, and values last as
    long as the object.
    """

    def __init__(self, key: Mapping[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True)
        self._name, self._values, self.lost = cache.key(text), dict[str, Any](), ""
        try:
            found = json.loads(cache.read(KIND, self._name) or b"{}")
        except (EdgerunError, ValueError):
            found = {}
        if isinstance(found, dict) and found.get("key") == json.loads(text):
            self._values = found
        self._values["key"] = dict(key)

    def get(self, label: str) -> Any:
        """The value of `label`, or None."""
        return self._values.get(label)

    def put(self, label: str, value: Any) -> None:
        """Keep `value` under `label`."""
        self._values[label] = value
        try:
            cache.write(KIND, self._name, json.dumps(self._values, sort_keys=True).encode())
        except EdgerunError as error:
            self.lost = str(error)
