"""Which of edgerun's two distributions this is: `edgerun`, or `edgerun-device`, without converters and compressor.

Both bring the package `edgerun`, so that only one of them may be installed; bench/device_wheel.py builds the second.
"""

from __future__ import annotations

import importlib.util

from edgerun.errors import Unsupported


def whole() -> bool:
    """Whether this is all of edgerun."""
    return importlib.util.find_spec("edgerun.quantize") is not None


def install(extra: str = "") -> str:
    """The command that adds an extra of `edgerun` to what is installed here: `pip install 'edgerun[openvino]'`."""
    name = "edgerun" if whole() else "edgerun-device"
    return f"pip install '{name}[{extra}]'" if extra else f"pip install {name}"


def lacks(module: str) -> bool:
    """Whether the device's install goes without this module of edgerun, as "verbs.convert"."""
    return not whole() and importlib.util.find_spec(f"edgerun.{module}") is None


def absent(what: str) -> Unsupported:
    """The error, in one line, for what the device's install goes without."""
    return Unsupported(
        f"{what} is not in edgerun-device, the device's install: do it on a workstation "
        "(pip install 'edgerun[compress]'; on this machine, pip uninstall edgerun-device first)"
    )
