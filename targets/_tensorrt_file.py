"""An engine file: a header in JSON (door, device, history, digests) before TensorRT's plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import TensorSpec
from edgerun.targets import _tensorrt_library as tensorrt

if TYPE_CHECKING:
    from edgerun.contents import Contents

MAGIC = b"edgerun tensorrt engine 1\n"
# Compared as they stand; the compute capability and the driver have rules of their own.
EXACT = ("runtime", "version", "arch")
DIGEST = "sha256"


def pack(header: Mapping[str, Any], plan: bytes) -> bytes:
    """MAGIC, the header's length in 8 bytes, the header, the plan; the same bytes for the same header and plan."""
    told = {**header, DIGEST: hashlib.sha256(plan).hexdigest()}
    text = json.dumps(told, sort_keys=True).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text + plan


def is_engine(data: bytes) -> bool:
    """Whether these bytes begin as an engine file does."""
    return data.startswith(MAGIC)


def unpack(payload: bytes | Path) -> tuple[dict[str, Any], bytes]:
    """Header and plan. Raises EdgerunError for anything but a whole engine file."""
    data = payload.read_bytes() if isinstance(payload, Path) else payload
    try:
        if not is_engine(data):
            raise ValueError("it does not begin as one")
        start = len(MAGIC) + 8
        end = start + int.from_bytes(data[len(MAGIC) : start], "little")
        header = json.loads(data[start:end])
        if hashlib.sha256(data[end:]).hexdigest() != header[DIGEST]:
            raise ValueError("its plan is not the one that was written")
    except (ValueError, KeyError, TypeError) as error:
        raise EdgerunError(
            "this is no engine of edgerun's for TensorRT", got=str(error)[:200], do="compile the .onnx again"
        ) from error
    return header, data[end:]


def door(header: Mapping[str, Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as they were before compilation."""
    inputs, outputs = (
        tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in header[side])
        for side in ("inputs", "outputs")
    )
    return inputs, outputs


def contents(path: Path) -> Contents:
    """What an engine file's header tells. Raises EdgerunError for any other file."""
    from edgerun.contents import Contents, steps

    header, _ = unpack(path)
    return Contents(
        str(path), "tensorrt", "TensorRT engine", path.stat().st_size, header.get("digest", ""), *door(header),
        header.get("preprocessing"), header.get("postprocessing"), steps(header.get("history", ())),
        device=header.get("device", {}),
    )  # fmt: skip


def metadata(header: Mapping[str, Any]) -> dict[str, str]:
    """The contracts, as the ONNX model had them in its metadata."""
    names = ("preprocessing", "postprocessing")
    return {f"edgerun.{name}": json.dumps(header[name]) for name in names if header.get(name) is not None}


def dla(header: Mapping[str, Any]) -> int | None:
    """The DLA core that the engine was built for, if it was built for one."""
    numbers = [
        word.removeprefix("dla=") for word in header["device"].get("flags", "").split() if word.startswith("dla=")
    ]
    return int(numbers[0]) if numbers and numbers[0].isdigit() else None


def specs(found: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """TensorSpecs as JSON values."""
    return [asdict(spec) for spec in found]


def check_key(built: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise Unsupported naming everything in which an engine's device differs from this one so that it cannot run."""
    wrong = {key for key in EXACT if built.get(key) != here.get(key)}
    if not _runs_on(built.get("capability", ""), here.get("capability", ""), built.get("runtime", "")):
        wrong.add("capability")
    if numbers(here.get("cuda", "")) < numbers(built.get("cuda", "")):
        wrong.add("cuda")
    if wrong:
        listed = [key for key in (*EXACT, "capability", "cuda") if key in wrong]
        raise Unsupported(
            "the engine was compiled for another device",
            got=", ".join(f"{key} {built.get(key) or 'unknown'}" for key in listed),
            wanted=", ".join(f"{key} {here.get(key) or 'unknown'}" for key in listed),
            do="compile the .onnx that it was made from on this device",
        )


def _runs_on(built: str, here: str, runtime: str) -> bool:
    """Plans run on the capability that they were built for; portable ones where the library says."""
    return tensorrt.portable_runs(runtime, numbers(here)) if built == "portable" else built == here


def numbers(text: str) -> tuple[int, ...]:
    """A version as what can be compared."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())
