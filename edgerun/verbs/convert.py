"""The verb `convert`: bring a trained model in, and prove that it still computes what its source computes."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgerun import __version__, contracts, divergence, files, guard, parity, registry, sandbox
from edgerun.converters import _ort
from edgerun.converters._normalize import OLDEST_OPSET
from edgerun.devices import Device
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.model import Model, Step
from edgerun.parity import Parity
from edgerun.passes import Conversion, Converter, Trusting
from edgerun.preprocess import Preprocessing
from edgerun.runtime import TensorSpec
from edgerun.verbs import devices
from edgerun.verbs.folding import folded

__all__ = ["Parity", "convert"]
log = logging.getLogger("edgerun")
LARGE = 1 << 30  # bytes of a source from which on its files are mapped, and what is made of it is renamed


def convert(
    source: Any,
    *,
    output: str | Path | None = None,
    inputs: Sequence[TensorSpec | str] = (),
    factory: str | None = None,
    converter: str | None = None,
    target: str | None = None,
    device: Device | str | Path | None = None,
    opset: int | None = None,
    trust: bool = False,
    preprocessing: Preprocessing | str | Path | None = None,
    fold_preprocessing: bool = False,
    force: bool = False,
    reproduction: str | Path | None = None,
    limits: sandbox.Limits | None = None,
) -> Model:
    """Convert a model file, or a framework's model object, to a Model; write it to `output` when that is given.

    A file, or a SavedModel's folder, is read and compared in a limited child process (`limits`); an object in this one.
    `inputs` are specs such as `image:float32[batch,3,224,224]`; `factory` is `module:callable`, which builds the model
    whose weights a PyTorch state_dict or a Keras file holds; `converter` is found from the source when None; `opset` is
    the newest to write, at most what `target` (onnxruntime, or the device's) reads, on `device` (a known one, or a
    file) where that is given.
    `reproduction` is a Python file to write when the framework cannot export the model: the smallest part that fails.
    `trust` lets a file that is a program (a pickle) run its code, in the limited child, with the rights of this
    user. The figures of the comparison with the source are in the history: `Parity.of(model)`.
    `preprocessing` is the contract that the model keeps (or a file that `edgerun.contracts` reads), else what the
    source tells of it; `fold_preprocessing` moves its arithmetic into the graph (`edgerun.verbs.folding`).
    Over 1.8 GB of weights stay in the file that is written, mapped: such a model needs an `output`.

    Raises EdgerunError for bad input, GateFailed when the comparison fails (nothing is written), Unsupported for
    layers or operators that cannot be converted.
    """
    for path in (output, reproduction):
        if path is not None:
            files.refuse_overwrite(Path(path), force)
    specs = [TensorSpec.parse(spec) if isinstance(spec, str) else spec for spec in inputs]
    is_file = isinstance(source, (str, Path))
    if is_file:
        guard.check_source(Path(source))
    name = converter or _recognised(source)
    if is_file and Path(source).is_dir() and not registry.converter(name).recognises(source):
        raise EdgerunError("not a file", got=source, wanted=f"what the converter {name!r} reads", do="leave --from out")
    preferred = _usable(name).newest_opset
    where, chosen = devices.chosen(device, target)
    newest = devices.limits(where, chosen)
    wanted = _opset(where.name if where else chosen, newest.opset, opset, preferred)
    if trust:
        _refuse_needless_trust(name, is_file)
    if isinstance(preprocessing, (str, Path)):
        preprocessing = contracts.read(Path(preprocessing))
    contract = None if preprocessing is None else preprocessing.to_json()
    size = sum(part.stat().st_size for part in _parts(Path(source))) if is_file else 0
    # A large model is renamed into its place when it has passed, which is no copy within one file system.
    beside = Path(output).parent if output is not None and size > LARGE else None
    with tempfile.TemporaryDirectory(prefix=".edgerun-" if beside else "edgerun-", dir=beside) as temporary:
        folder, texts = Path(temporary), [str(spec).removeprefix(":") for spec in specs]
        log.info("converters/%s reads %s", name, source if is_file else type(source).__name__)
        try:
            if is_file:
                arguments = {"source": str(Path(source).resolve()), "folder": temporary, "name": name,
                             "inputs": texts, "factory": factory, "opset": wanted, "trust": trust,
                             "contract": contract, "fold": fold_preprocessing}  # fmt: skip
                within = replace(limits or sandbox.Limits(), mapped=_stored(Path(source)) if size > LARGE else 0)
                sandbox.call("edgerun.verbs.convert:convert_here", arguments, folder, within)
            else:
                convert_here(source, temporary, name, texts, factory, wanted, False, contract, fold_preprocessing)
        except Unsupported:
            if reproduction is not None and (program := folder / "reproduction.py").is_file():
                files.write_bytes(Path(reproduction), program.read_bytes())
                log.info("%s shows the smallest part that fails", reproduction)
            raise
        model = Model.load(folder / "model.onnx")
        if issues := newest.exceeded(model):
            raise Unsupported(f"{where.name if where else chosen} does not read the model", got=issues[0].reason)
        if model.is_large():
            return _moved(folder / "model.onnx", output)
    if output is not None:
        model.save(output)
    return model


def _parts(source: Path) -> list[Path]:
    """The files of a source in name order: those in a folder, or the file and those beside an ONNX model."""
    if source.is_dir():
        return sorted(part for part in source.rglob("*") if part.is_file())
    return [source, *(guard.beside(source) if source.suffix.lower() == ".onnx" else ())]


def _stored(source: Path) -> int:
    """The bytes that a source takes on the disk: a hole, which anyone can make of any size, lifts no cap."""
    found = [part.stat() for part in _parts(source)]
    return sum(min(status.st_size, 512 * getattr(status, "st_blocks", 0)) for status in found)


def _moved(made: Path, output: str | Path | None) -> Model:
    from edgerun import pair

    if output is None:
        raise EdgerunError("a model over 1.8 GB is converted into a file", do="give an output")
    pair.move(made, Path(output))
    return Model.load(output)


def convert_here(
    source: Any, folder: str, name: str, inputs: list[str], factory: str | None, opset: int, trust: bool = False,
    contract: Mapping[str, Any] | None = None, fold: bool = False,
) -> None:  # fmt: skip
    """Convert in this process and leave `model.onnx` in `folder`; `convert` runs this in the limited child."""
    specs, converter = [TensorSpec.parse(text) for text in inputs], registry.converter(name)
    reads = converter.convert_trusted if trust and isinstance(converter, Trusting) else converter.convert
    try:
        found = reads(source, inputs=specs, factory=factory, opset=opset)
    except Unsupported as error:
        if error.reproduction:
            (Path(folder) / "reproduction.py").write_text(error.reproduction)
        raise
    path = Path(folder) / "model.onnx"
    if "classes" not in found.model.ir.metadata_props and (classes := contracts.class_names(found.model)):
        found.model.ir.metadata_props["classes"] = json.dumps(classes)
    found.model.save(path)
    if found.model.is_large():  # from here on the file's, mapped: what the converter made need not stay in memory
        found = replace(found, model=Model.load(path))
    log.info("comparing with the source on random inputs")
    ours = _ort.runner(path)
    given: dict[str, Any] = {"feeds": found.feeds, "data": found.data, "parts": found.parts}
    try:
        result = parity.check(found.model, ours, found.run, found.run64, **given)
    except GateFailed as error:
        place = _divergence(found)
        raise GateFailed(error.what, got=f"{error.got}{place}", wanted=error.wanted, do=error.do) from error
    if not result.passed:
        raise _gate(result, _divergence(found))
    options: Mapping[str, Any] = {
        "source": Path(source).name if isinstance(source, str) else type(source).__name__,
        "inputs": inputs,
        "factory": factory,
        "opset": opset,
        "parity": result.to_json(),
        **found.told,
    }
    before = _digest(Path(source)) if isinstance(source, str) else ""
    step = Step(f"converters/{name}", __version__, options, before, found.model.digest())
    made = _with_contract(found.model.with_step(step), contract)
    if fold:
        log.info("moving the preprocessing into the graph, and comparing on pictures")
        made = folded(made)
    made.save(path)


def _with_contract(model: Model, contract: Mapping[str, Any] | None) -> Model:
    """The model with the contract given, else with the one that its metadata tells, if that fits its input."""
    if contract is not None:
        found = Preprocessing.from_json(contract).fitted(model.inputs)
        return model.retold(found.to_json(), model.history)
    try:
        told = contracts.of(model)
        fitted = None if told is None else told.fitted(model.inputs).to_json()
    except EdgerunError as error:
        log.info("the preprocessing contract in the metadata is left out: %s", error)
        fitted = None
    return model.retold(fitted, model.history)


def _refuse_needless_trust(name: str, is_file: bool) -> None:
    if not is_file:
        raise EdgerunError("a model object needs no trust", do="leave trust out")
    if not isinstance(registry.converter(name), Trusting):
        able = [n for n in registry.names("converter") if isinstance(registry.converter(n), Trusting)]
        raise EdgerunError(f"converter {name!r} never runs a file's code, trusted or not",
                           wanted=f"--trust with {', '.join(able)}", do="leave --trust out")  # fmt: skip


def _divergence(found: Conversion) -> str:
    """The first node that differs from the source, as a line of an error; "" where the converter has no taps."""
    if not found.taps:
        return ""
    log.info("looking for the first node that differs")
    drawn = list(found.feeds) or [feeds for feeds, _ in parity.accepted(found.model, found.run)]
    for feeds in drawn:
        if (place := divergence.find(found.model, found.taps, _ort.runner, feeds)) is not None:
            return f"\n    {place}"
    return "\n    no value inside that the source also has differs"


def _gate(result: Parity, place: str) -> GateFailed:
    lines = [
        f"{o.name}: relative error {o.relative_error:.2g}, allowed {o.bound:.2g}, SQNR "
        f"{'exact' if o.sqnr_db is None else f'{o.sqnr_db:.1f} dB'}"
        for o in result.outputs
        if not o.passed
    ]
    lines += [
        f"{c.kind}: {c.steps:g} steps, allowed {c.bound} (floats {c.relative_error:.2g})"
        for c in result.codes
        if not c.passed
    ]
    return GateFailed(
        f"the converted model does not compute what its source computes (against {result.reference})",
        got="; ".join(lines) + place,
        do="nothing was written; try fixed sizes in --input, or another --opset",
    )


def _opset(reader: str, newest: int, opset: int | None, preferred: int) -> int:
    """The newest opset to write for `reader`, a device or a target, which reads `newest`."""
    if opset is None:
        return min(preferred, newest)
    if not OLDEST_OPSET <= opset <= newest:
        raise EdgerunError(f"{reader!r} cannot use this opset", got=opset, wanted=f"{OLDEST_OPSET} to {newest}")
    return opset


def _recognised(source: Any) -> str:
    for name in registry.names("converter"):
        if registry.converter(name).recognises(source):
            return name
    known = "\n    ".join(f"{name}: {registry.converter(name).summary}" for name in registry.names("converter"))
    raise EdgerunError("no converter recognises the source", got=source, wanted=f"one of\n    {known}",
                       do="name the converter with --from, if the file's name misleads")  # fmt: skip


def _usable(name: str) -> Converter:
    converter = registry.converter(name)
    if reason := registry.missing(converter.requires, converter.extra):
        raise Unsupported(f"converter {name!r} is unavailable here", got=reason)
    return converter


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a folder or a file with data beside it, over the names and digests of all its files."""
    parts, top = _parts(path), path if path.is_dir() else path.resolve().parent
    if path.is_dir() or len(parts) > 1:
        lines = "".join(f"{part.resolve().relative_to(top.resolve()).as_posix()} {_hashed(part)}\n" for part in parts)
        return hashlib.sha256(lines.encode()).hexdigest()
    return _hashed(path)


def _hashed(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
