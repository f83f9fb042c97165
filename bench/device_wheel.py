"""The device's wheel, `edgerun-device`: those files of edgerun that a device uses, as they are.

    python -m bench.device_wheel dist

Left out are converters and compressor, what reads and checks graphs with onnx (`compile` and `inspect`), times single
kernels (`why-slow`) and what reads Transformers' and timm's configs, whatever cannot be imported without them, a
command or a door in another tool's shape that calls what is left out, and what nothing else imports.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tomllib

import edgerun
from edgerun.errors import EdgerunError

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "edgerun": "edgerun",
    "targets": "edgerun.targets",
    "converters": "edgerun.converters",
    "quantize": "edgerun.quantize",
}
OUT = (
    "edgerun.converters", "edgerun.quantize", "edgerun.model", "edgerun.verbs.compile", "edgerun.verbs.checked",
    "edgerun.verbs.inspect", "edgerun.verbs.why_slow", "edgerun.targets.reference", "edgerun.targets._alone",
    "edgerun.targets._profile", "edgerun.targets._onnxruntime_overhead", "edgerun.targets._onnxruntime_optimized",
    "edgerun.targets._onnxruntime_context", "edgerun.targets._openvino_faults",
    "edgerun.targets._openvino_reduces", "edgerun.targets._openvino_turns", "edgerun.targets._openvino_zeros",
    "edgerun.targets._tensorrt_kernels", "edgerun.targets._tensorrt_parser", "edgerun.targets._tensorrt_recipe",
    "edgerun.targets._tensorrt_trial",
    "edgerun.pair", "edgerun.contents", "edgerun.processors", "edgerun.classifiers",
)  # fmt: skip
DOORS = ("edgerun.cli.", "edgerun.compat.")  # import what they call when they are called
ROOTS = ("edgerun.cli", "edgerun.targets", "edgerun.runtime", "edgerun.compat")  # with all that is public in them
DATA = ("edgerun/py.typed", "targets/devices/*.toml")
SECONDS = 600.0


def kept() -> dict[str, Path]:
    """The modules of the wheel, by name, and the files of this checkout that they are."""
    found = _modules()
    needs = {name: set(_imported(path, found, late=False)) for name, path in found.items()}
    calls = {name: set(_imported(path, found, late=True)) for name, path in found.items()}
    out = {name for name in found if _within(name, OUT)}
    while more := {n for n in found if (calls if n.startswith(DOORS) else needs)[n] & out} - out:
        out |= more
    left = [name for name in found if _within(name, ROOTS) and not name.rpartition(".")[2].startswith("_")]
    left += ["edgerun.__main__", *(f"edgerun.verbs.{name}" for name in edgerun.__all__)]
    used = set[str]()
    while left:
        if (name := left.pop()) in found and name not in used | out:
            used.add(name)
            left += calls[name]
    return {name: found[name] for name in sorted(used)}


def build(place: Path) -> Path:
    """Build the wheel into the folder `place`, and return its path. Raises EdgerunError where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for path in (*kept().values(), *(path for pattern in DATA for path in ROOT.glob(pattern))):
            inside = path.relative_to(ROOT)
            copy = source / (inside if inside.parts[0] == "edgerun" else "edgerun" / inside)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        for path in (*(ROOT / "bench/device").iterdir(), ROOT / "LICENSE"):
            shutil.copy(path, source / path.name)
        needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        (source / "requirements.txt").write_text("".join(f"{need}\n" for need in needs))
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(place), folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise EdgerunError("the device's wheel cannot be built", got=f"{done.stdout}{done.stderr}"[-1000:])
    (wheel,) = place.glob("edgerun_device-*.whl")
    return wheel


def _modules() -> dict[str, Path]:
    """Every module of edgerun in this checkout."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):  # does not enter the three links
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in inside if part != "__init__")))] = path
    return found


def _imported(path: Path, known: dict[str, Path], *, late: bool) -> Iterator[str]:
    """The modules of `known`, and the packages around them, that a file imports; with `late`, in functions too."""
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), late):
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
        for name in names:
            while name in known:
                yield name
                name = name.rpartition(".")[0]


def _nodes(tree: ast.AST, late: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif late or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _nodes(node, late)


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def main() -> None:
    """Build it into the folder that is named, and say what it is."""
    parser = argparse.ArgumentParser(description="Build the device's wheel, edgerun-device.")
    parser.add_argument("folder", type=Path)
    try:
        wheel = build(parser.parse_args().folder.resolve())
    except EdgerunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{wheel}: {wheel.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
