"""How a float model is compressed again as a quantized one was, with more of it in float."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgerun import devices as known
from edgerun import registry
from edgerun.model import Model, Step
from edgerun.quantize import _steps
from edgerun.quantize.diagnosis.advice import Static
from edgerun.quantize.graphs.compressed import INT8_MATH
from edgerun.verbs import devices
from edgerun.verbs.making import KEPT

STATIC = "w8a8"  # the scheme with ranges from calibration


def step(quantized: Model) -> Step | None:
    """The Step that quantized the model, where edgerun did."""
    return next((one for one in quantized.history if one.name.startswith("quantize/")), None)


def command(model: Model | str | Path, quantized: Model, data: Any, contract: Any, names: Sequence[str]) -> str | None:
    """The command that compresses the float model anew as `quantized` was, with `names` in float too.

    `data` and the preprocessing `contract` are told where they are files. None where there are no names.
    """
    if not names:
        return None
    usual = {"scheme": STATIC, "target": devices.DEFAULT_TARGET}
    options = [f"--{key}={value}" for key, value in _asked(quantized).items() if usual.get(key) != value]
    options += [f"--preprocessing={contract}"] if isinstance(contract, (str, Path)) else []
    source = "MODEL" if isinstance(model, Model) else str(model)
    feeds = str(data) if isinstance(data, (str, Path)) else "DATA"
    words = ["edgerun", "compress", source, "--calibration", feeds, *options]
    words += [word for name in (*_spared(quantized), *names) for word in ("--keep-float", name)]
    return shlex.join([*words, "-o", "OUT.onnx"])


def static(quantized: Model) -> Static | None:
    """By which rules the same is done, and what was left in float; None where ranges are not static."""
    asked, made = _asked(quantized), step(quantized)
    if asked["scheme"] != STATIC:
        return None
    where, name = devices.chosen(asked.get("device"), asked["target"])
    clocked = () if made is None else made.options.get(KEPT, ())
    return Static(registry.target(name, usable=False).quantization(where), frozenset([*_spared(quantized), *clocked]))


def _asked(quantized: Model) -> dict[str, str]:
    """The scheme, the target, and a device that is known by name, which the history tells; else as the ops look."""
    made = step(quantized)
    told = {"scheme": _scheme(quantized), "target": devices.DEFAULT_TARGET, **({} if made is None else made.options)}
    named = ("scheme", "target", *(["device"] if told.get("device") in known.names() else []))
    return {key: str(told[key]) for key in named}


def _scheme(quantized: Model) -> str:
    """The scheme that a model's ops look like."""
    for node in quantized.ir.graph:
        if node.op_type == "DynamicQuantizeLinear":
            return "w8a8_dynamic"
        if node.op_type == "MatMulNBits":
            return "w4a8" if node.attributes.get_int("accuracy_level", 0) >= INT8_MATH else "w4a16_b32"
    return STATIC


def _spared(quantized: Model) -> Sequence[str]:
    """The layers that `compress` left in float of itself, since the model was far off without."""
    made = step(quantized)
    return () if made is None else tuple(made.options.get(_steps.FLOAT, ()))
