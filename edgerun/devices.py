"""Devices as data: what is known of a board or a machine, each fact with its source. TOML in, TOML out."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edgerun import files
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import machine
from edgerun.target import Limits

# What a fact may be called, its type, and what it says.
KEYS: dict[str, tuple[type, str]] = {
    "arch": (str, "architecture, as `uname -m` tells it"),
    "model": (str, "how the machine's own name begins: of its device tree, else of its CPU"),
    "cpu": (str, "CPU"),
    "cores": (int, "CPU cores"),
    "isa": (list, "instruction sets that integer and bfloat16 kernels use, in the kernel's spelling"),
    "memory_gib": (list, "memory in GiB, by variant"),
    "gpu": (str, "GPU"),
    "capability": (str, "the GPU's CUDA compute capability"),
    "dla": (int, "cores of NVIDIA's deep learning accelerator"),
    "npu": (str, "neural processing unit"),
    "system": (str, "the system that it ships with"),
    "cuda": (str, "CUDA version of that system"),
    "python": (str, "Python version of that system"),
    "onnxruntime": (str, "ONNX Runtime version"),
    "openvino": (str, "OpenVINO version"),
    "tensorrt": (str, "TensorRT version"),
    "tensorrt_rtx": (str, "TensorRT for RTX version"),
    "target": (str, "the target that models are made for unless another is named"),
    "schemes": (list, "schemes of that target with kernels that are fast there"),
    "ir_version": (int, "the newest ONNX IR version that the target reads there"),
    "opset": (int, "the newest ONNX opset that the target reads there"),
}
NUMBERS = ("memory_gib",)  # lists of those; others hold text
NEEDED = ("arch", "isa", "target", "schemes")
FOLDER = "devices"


@dataclass(frozen=True)
class Fact:
    """A value of a device, and who says so."""

    value: Any
    source: str


@dataclass(frozen=True)
class Device:
    """A board or machine: `facts` by name, as in `KEYS`."""

    name: str
    summary: str
    facts: Mapping[str, Fact]

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a fact, or `default` where nothing is known."""
        return self.facts[key].value if key in self.facts else default

    @property
    def arch(self) -> str:
        """As `uname -m` tells it."""
        return str(self.facts["arch"].value)

    @property
    def isa(self) -> frozenset[str]:
        """Instruction sets that integer and bfloat16 kernels use."""
        return frozenset(self.facts["isa"].value)

    @property
    def target(self) -> str:
        """The target that models are made for unless another is named."""
        return str(self.facts["target"].value)

    def limits(self, target: str) -> Limits | None:
        """What `target` reads there; None where that is not known."""
        if target != self.target or not {"ir_version", "opset"} <= set(self.facts):
            return None
        return Limits(self.facts["ir_version"].value, self.facts["opset"].value)

    def unlike(self) -> list[str]:
        """How this machine's CPU differs in what kernels are chosen by; empty when it does not."""
        if (arch := machine.arch()) != machine.arch(self.arch):
            return [f"it is {arch}, not {machine.arch(self.arch)}"]
        if self.isa != (isa := set(machine.isa())):
            return [f"its instruction sets are {_words(isa)}, not {_words(self.isa)}"]
        return []

    def differences(self, here: Mapping[str, str]) -> list[str]:
        """What this machine has otherwise, as far as facts tell; empty when it may be the device.

        `here` is the fingerprint of the target: where it knows the GPU, that is compared too.
        """
        found = self.unlike()
        if machine.arch() != machine.arch(self.arch):
            return found
        model = self.value("model")
        if model is not None and not machine.model().startswith(model):
            found.append(f"it calls itself {machine.model()!r}, not {model!r}")
        wanted, has = self.value("capability"), here.get("capability", "")
        if wanted is not None and "capability" in here and has != wanted:
            found.append(f"its GPU has compute capability {has or '(none: no GPU answers)'}, not {wanted}")
        return found

    def toml(self) -> str:
        """The device as a file that `find` reads."""
        lines = [f"summary = {_toml(self.summary)}"]
        for key, fact in self.facts.items():
            lines.append(f"{key} = {{ value = {_toml(fact.value)}, source = {_toml(fact.source)} }}")
        return "\n".join(lines) + "\n"


def names() -> list[str]:
    """The names of the devices in `targets/devices`, sorted; nothing is read."""
    folder = resources.files("edgerun.targets") / FOLDER
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def known() -> list[Device]:
    """The devices in `targets/devices/*.toml`, by name. Raises Unsupported on Python 3.10 without tomli."""
    folder = resources.files("edgerun.targets") / FOLDER
    return [read(name, (folder / f"{name}.toml").read_text(encoding="utf-8")) for name in names()]


def is_board(name: Device | str | Path) -> bool:
    """Whether `find` looks for a device by it."""
    return isinstance(name, Device) or Path(name).suffix == ".toml" or str(name) in names()


def find(name: Device | str | Path) -> Device:
    """The device of that name, or of a file that `edgerun probe` wrote (`NAME.toml`)."""
    if isinstance(name, Device):
        return name
    path = Path(name)
    if path.suffix == ".toml":
        files.check_name(path)
        try:
            return read(path.stem, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise EdgerunError("cannot read the device", got=f"{path}: {error}", wanted="a .toml file") from error
    devices = {device.name: device for device in known()}
    if str(name) not in devices:
        raise unknown("device", str(name), devices)
    return devices[str(name)]


def read(name: str, text: str) -> Device:
    """The device that TOML `text` describes. Raises EdgerunError for what is no fact, or a fact without a source."""
    tomllib = _reader()
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EdgerunError(f"device {name!r} is not TOML", got=error, do="write it anew: edgerun probe") from error
    summary, facts = table.pop("summary", ""), {}
    if not isinstance(summary, str):
        raise EdgerunError(f"device {name!r}: the summary is not text", got=summary)
    for key, fact in table.items():
        if key not in KEYS:
            raise unknown(f"fact of device {name!r}:", key, KEYS)
        facts[key] = _fact(name, key, fact)
    if missing := [key for key in NEEDED if key not in facts]:
        raise EdgerunError(f"device {name!r} is not complete", got=", ".join(facts), wanted=", ".join(missing))
    return Device(name, summary, facts)


def _reader() -> Any:
    """Python's reader of TOML, or, of 3.10, which has none, the package that it came from."""
    for module in ("tomllib", "tomli"):
        if importlib.util.find_spec(module) is not None:
            return importlib.import_module(module)
    python = ".".join(platform.python_version_tuple()[:2])
    raise Unsupported("devices are TOML", got=f"Python {python} without tomli", do="pip install 'tomli>=2'")


def _fact(name: str, key: str, fact: Any) -> Fact:
    kind = KEYS[key][0]
    if not isinstance(fact, dict) or set(fact) != {"value", "source"} or not isinstance(fact["source"], str):
        raise EdgerunError(f"device {name!r}: {key} is not a fact", got=fact, wanted="a value and its source")
    value, of = fact["value"], (int, float) if key in NUMBERS else (str if kind is list else kind,)
    items: list[Any] = [value] if kind is not list else value if isinstance(value, list) else [None]
    for item in items:
        if type(item) not in of or not isinstance(item, str) and not 0 <= item < float("inf"):
            wanted = f"{'a list of ' * (kind is list)}{'text' if str in of else 'numbers, 0 or more'}"
            raise EdgerunError(f"device {name!r}: {key} has another type or range", got=value, wanted=wanted)
    return Fact(value, fact["source"])


def _words(names: set[str] | frozenset[str]) -> str:
    return " ".join(sorted(names)) or "none of those known"


def _toml(value: str | int | float | Sequence[Any]) -> str:
    """A TOML value; TOML's basic strings, numbers and arrays are written as JSON's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
