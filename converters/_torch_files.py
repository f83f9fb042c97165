"""What kind of PyTorch file is this, and reading it without running a stranger's code.

A state_dict and a pickled program are both pickles; TorchScript and `.pt2` are zip archives with their own members.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported

LARGE = 1 << 30  # bytes of a file from which on its tensors are mapped, not read
_LARGEST_JSON = 256 << 20  # bytes of one member that is read whole
_NESTED = ("state_dict", "model_state_dict", "model", "net", "module")  # where training scripts keep the weights
# Call targets are looked up by their dotted name, and `torch.os.system` is one: allow operators only.
_OPERATOR = re.compile(
    r"(torch\.ops\.(aten|prims?|higher_order|quantized\w*|torchvision|rngprims)\.\w+(\.\w+)?"
    r"|_operator\.\w+|math\.\w+|torch\.(_?sym_\w+|Sym\w+)|)"
)
_WAY_OUT = (
    "save model.state_dict() and name the class with --factory module:callable, "
    "or save TorchScript (torch.jit.save) or a .pt2 (torch.export.save)"
)


def kind(path: Path) -> str:
    """ "folder" and "safetensors" from the name; "torchscript", "pt2" or "pickle" from the members' names alone."""
    if path.is_dir() or path.suffix.lower() == ".safetensors":
        return "folder" if path.is_dir() else "safetensors"
    if not zipfile.is_zipfile(path):
        return "pickle"
    with zipfile.ZipFile(path) as archive:
        names = [name.split("/", 1)[-1] for name in archive.namelist()]
    if any(name.startswith("models/") for name in names) or "serialized_exported_program.json" in names:
        return "pt2"
    return "torchscript" if any(name.startswith("code/") for name in names) else "pickle"


def state_dict(path: Path) -> dict[str, Any]:
    """The tensors of a state_dict or of a checkpoint around one. Raises EdgerunError for a pickled program."""
    import torch

    try:
        mapped = path.stat().st_size > LARGE and zipfile.is_zipfile(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise EdgerunError(
            "the file is a pickled program: reading it would run its code",
            got=f"it asks for {name[1]}"
            if name
            else first_line(error, 2000).rpartition("WeightsUnpickler error: ")[2][:300],
            do=_WAY_OUT,
        ) from None
    except Exception as error:  # zip, EOF, key and runtime errors, by the kind of damage
        raise EdgerunError("torch cannot read the file", got=first_line(error), do="save it again") from error
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if isinstance(loaded, dict) and not _are_tensors(loaded):  # a checkpoint: what else it keeps are no tensors by name
        held = [key for key, value in loaded.items() if _are_tensors(value)]
        if len(held) != 1:
            found = f"a dict of {', '.join(map(str, list(loaded)[:8]))}"
            raise EdgerunError("the file holds no state_dict" if not held else "the file holds several state_dicts",
                               got=found, do=_WAY_OUT)  # fmt: skip
        loaded = loaded[held[0]]
    if not _are_tensors(loaded):
        raise EdgerunError("the file holds no state_dict", got=type(loaded).__name__, do=_WAY_OUT)
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def _are_tensors(value: Any) -> bool:
    import torch

    return isinstance(value, dict) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def torchscript(path: Path) -> Any:
    """A ScriptModule in eval mode. Raises Unsupported where its `forward` keeps something for the next call."""
    import torch

    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except Exception as error:  # RuntimeError and ValueError of the archive reader
        raise EdgerunError(
            "torch cannot read the TorchScript file", got=first_line(error), do="save it again"
        ) from error
    graph = module.inlined_graph  # the nodes live as long as it does
    if kept := sorted({node.s("name") for node in graph.findAllNodes("prim::SetAttr", recurse=True)}):
        parts = ", ".join(f"module.{name}" for name, _ in module.named_children())
        raise Unsupported(
            "the module keeps a state from run to run, which a graph has not", got=f"forward writes {', '.join(kept)}",
            do=f"save the part within whose forward takes and returns its state, with torch.jit.save; here: {parts}",
        )  # fmt: skip
    return module


def exported_program(path: Path) -> Any:
    """A `torch.export` program. Raises EdgerunError when the archive carries code, or was exported for training."""
    import torch

    _refuse_code(path)
    # The reader asks for full unpickling in places; this makes every one of them refuse code.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        program = torch.export.load(str(path))
    except Exception as error:  # anything its deserializer meets
        raise EdgerunError(
            "torch cannot read the .pt2 file", got=first_line(error), do="save it again with this torch"
        ) from error
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
    for node in program.graph.nodes:
        if _trains(node):
            raise EdgerunError(
                "the program was exported in training mode", got=node.name, do="call model.eval() before torch.export"
            )
    return program


def _trains(node: Any) -> bool:
    name = str(node.target)
    return (name.startswith("aten.dropout") and node.args[2] is True) or (
        name.startswith("aten.batch_norm") and node.args[5] is True
    )


def _refuse_code(path: Path) -> None:
    """A .pt2 may carry libraries, pickles, and expressions that its reader evaluates: allow only arithmetic."""
    refusal = "the .pt2 file carries code that reading it would run"
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if "aotinductor" in info.filename:
                raise EdgerunError(refusal, got=info.filename, do="save the program with torch.export.save")
            if not info.filename.endswith(".json"):
                continue
            if info.file_size > _LARGEST_JSON:
                raise EdgerunError(
                    "a member of the .pt2 file is too large", got=f"{info.filename}: {info.file_size} bytes"
                )
            try:
                content = json.loads(archive.read(info))
            except (ValueError, zipfile.BadZipFile, RecursionError) as error:
                raise EdgerunError("the .pt2 file is damaged", got=f"{info.filename}: {error}") from error
            for found in _code(content):
                raise EdgerunError(refusal, got=f"{info.filename}: {found[:200]}", do="export the program again")


def _code(value: Any) -> Iterator[str]:
    """Everything in a .pt2's JSON that would be unpickled or evaluated and is more than arithmetic."""
    if isinstance(value, list):
        for item in value:
            yield from _code(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "path_name" and str(item).startswith("opaque"):
            yield str(item)
        elif key == "target" and isinstance(item, str) and not _OPERATOR.fullmatch(item):
            yield item
        elif key == "expr_str" or key == "guards_code":
            yield from (text for text in ([item] if isinstance(item, str) else item) if not _arithmetic(str(text)))
        else:
            yield from _code(item)


def _arithmetic(text: str) -> bool:
    """Is `text` an expression of numbers, plain names, and calls of capitalised functions (sympy's) or of sizes?"""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except SyntaxError:
        return False
    allowed = (
        ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword, ast.Name, ast.Attribute,
        ast.Subscript, ast.Constant, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context, ast.Tuple,
    )  # fmt: skip
    return all(isinstance(node, allowed) and _plain(node) for node in nodes)


def _plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    if isinstance(node, ast.Attribute):
        return node.attr in {"size", "dim", "stride", "shape", "storage_offset"}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.isidentifier() and not node.value.startswith("_")
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) or (isinstance(node.func, ast.Name) and node.func.id[:1].isupper())
    return True
