"""The verb `convert`: bring a trained model in, and prove that it still computes what its source computes."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import __version__, answers, contracts, files, guard_source, registry, sandbox
from edgerun.converters._normalize import OLDEST_OPSET
from edgerun.devices import Device
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model, Step
from edgerun.parity import Parity
from edgerun.passes import Choosing, Trusting
from edgerun.postprocess import Postprocessing
from edgerun.preprocess import Preprocessing
from edgerun.runtime import TensorSpec
from edgerun.verbs import devices, finite, fitting, source_files
from edgerun.verbs.meaning import class_names, with_contract, with_meaning

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
    postprocessing: Postprocessing | str | Path | None = None,
    fold_preprocessing: bool = False,
    force: bool = False,
    reproduction: str | Path | None = None,
    signature: str | None = None,
    as_is: bool = False,
    data: Any = None,
    limits: sandbox.Limits | None = None,
) -> Model:
    """Convert a model file, or a framework's model object, to a Model; write it to `output` when that is given.

    A file, or a SavedModel's folder, is read and compared in a limited child process (`limits`); an object in this one.
    `inputs` are specs such as `image:float32[batch,3,224,224]`; `factory` is `module:callable`, which builds the model
    whose weights a PyTorch state_dict or a Keras file holds; `converter` is found from the source when None; `opset` is
    the newest to write, at most what `target` (onnxruntime, or the device's) reads, on `device` (a known one, or a
    file) where that is given.
    `reproduction` is a Python file to write when the framework cannot export the model: the smallest part that fails.
    `signature` names the one to convert of a SavedModel or a TFLite file that holds several.
    `trust` lets a file that is a program (a pickle) run its code, in the limited child, with the rights of this
    user. `data`, of any kind that `edgerun.data.open_data` takes (for a file: a path, `module:callable` or a mapping
    of arrays), is compared on beside random inputs. The figures are in the history: `Parity.of(model)`.
    `as_is` leaves the graph of an ONNX file as it came, where it would be simplified (`edgerun.verbs.simplifying`).
    `preprocessing` is the contract that the model keeps (or a file that `edgerun.contracts` reads), else what the
    source tells of it (a Hugging Face folder by its `preprocessor_config.json`); `fold_preprocessing` moves its
    arithmetic into the graph (`edgerun.verbs.folding`). `postprocessing` says what the outputs mean (or a file that
    `edgerun.answers` reads), and is kept the same way (such a folder's `config.json` tells a classifier's classes).
    Over 1.8 GB of weights stay in the file that is written, mapped: such a model needs an `output`.

    Raises EdgerunError for bad input, GateFailed when the comparison fails (nothing is written), Unsupported for
    layers or operators that cannot be converted.
    """
    for path in (output, reproduction):
        if path is not None:
            files.refuse_same(Path(path), source)
            files.refuse_overwrite(Path(path), force)
    specs = [TensorSpec.parse(spec) if isinstance(spec, str) else spec for spec in inputs]
    name = _reader(source, converter)
    where, chosen = devices.chosen(device, target)
    newest, runs = fitting.limits(where, chosen), where.name if where else chosen
    wanted = _opset(runs, newest.opset, opset, registry.converter(name).newest_opset)
    _refuse_needless(name, source, trust, signature)
    asked = {"name": name, "inputs": [str(spec).removeprefix(":") for spec in specs], "factory": factory,
             "opset": wanted, "trust": trust, "contract": _contract(preprocessing), "fold": fold_preprocessing,
             "meaning": answers.to_json(postprocessing), "signature": signature, "as_is": as_is}  # fmt: skip
    with _room(source, output) as folder:
        log.info("converters/%s reads %s", name, source if _is_file(source) else type(source).__name__)
        model = _made(source, Path(folder), asked, data, reproduction, limits or sandbox.Limits())
        if issues := newest.exceeded(model):
            raise Unsupported(f"{runs} does not read the model", got=issues[0].reason)
        if spoilt := finite.broken(model):
            log.warning("weights that are not finite spoil what the model computes: %s", finite.told(spoilt))
        if model.is_large():
            return _moved(Path(folder) / "model.onnx", output)
    if output is not None:
        model.save(output)
    return model


def _made(
    source: Any, folder: Path, asked: Mapping[str, Any], data: Any, reproduction: str | Path | None,
    limits: sandbox.Limits,
) -> Model:  # fmt: skip
    """The model of `source`, made in `folder` with what is `asked` of `convert_here`: of a file by a limited child."""
    try:
        if _is_file(source):
            whole = {"source": str(Path(source).resolve()), "folder": str(folder), **asked, "data": _kept(data, folder)}
            within = replace(limits, mapped=source_files.stored(Path(source)) if _is_large(source) else 0)
            reader = threading.Thread(target=importlib.import_module, args=("onnx_ir",))  # of what the child leaves
            reader.start()
            sandbox.call("edgerun.verbs.convert:convert_here", whole, folder, within)
            reader.join()
        else:
            convert_here(source, str(folder), **asked, data=data)
    except Unsupported:
        if reproduction is not None and (program := folder / "reproduction.py").is_file():
            files.write_bytes(Path(reproduction), program.read_bytes())
            log.info("%s shows the smallest part that fails", reproduction)
        raise
    return Model.load(folder / "model.onnx")


def _is_file(source: Any) -> bool:
    return isinstance(source, (str, Path))


def _is_large(source: Any) -> bool:
    return _is_file(source) and sum(part.stat().st_size for part in source_files.parts(Path(source))) > LARGE


def _room(source: Any, output: str | Path | None) -> tempfile.TemporaryDirectory[str]:
    """Where the model is made. A large one is renamed into its place when it has passed, which is no copy within one
    file system."""
    if output is not None and _is_large(source):
        return tempfile.TemporaryDirectory(prefix=".edgerun-", dir=Path(output).parent)
    return tempfile.TemporaryDirectory(prefix="edgerun-")


def _kept(data: Any, folder: Path) -> str | None:
    """Where the child finds `data`: arrays go into `folder`."""
    if isinstance(data, Mapping):
        np.savez(folder / "given.npz", **data)
        return str(folder / "given.npz")
    if data is None:
        return None
    if isinstance(data, (str, Path)):
        return str(Path(data).resolve()) if Path(data).exists() else str(data)
    raise EdgerunError("these data do not reach the process that reads the file", got=type(data).__name__,
                       wanted="a path, module:callable or a mapping of arrays")  # fmt: skip


def _moved(made: Path, output: str | Path | None) -> Model:
    from edgerun import pair

    if output is None:
        raise EdgerunError("a model over 1.8 GB is converted into a file", do="give an output")
    pair.move(made, Path(output))
    return Model.load(output)


def convert_here(
    source: Any, folder: str, name: str, inputs: list[str], factory: str | None, opset: int, trust: bool = False,
    contract: Mapping[str, Any] | None = None, fold: bool = False, signature: str | None = None,
    as_is: bool = False, data: Any = None, meaning: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Convert in this process and leave `model.onnx` in `folder`; `convert` runs this in the limited child."""
    from edgerun.verbs import observing, simplifying  # which the child's parent, and a device, do not need

    specs, converter = [TensorSpec.parse(text) for text in inputs], registry.converter(name)
    reads = converter.convert_trusted if trust and isinstance(converter, Trusting) else converter.convert
    if signature is not None and isinstance(converter, Choosing):
        reads = functools.partial(converter.convert_signature, signature=signature)
    try:
        found = reads(source, inputs=specs, factory=factory, opset=opset)
    except Unsupported as error:
        if error.reproduction:
            (Path(folder) / "reproduction.py").write_text(error.reproduction)
        raise
    path = Path(folder) / "model.onnx"
    if as_is and found.foreign is None:
        raise EdgerunError("only an ONNX file's graph can stay as it is", got=name, do="leave --as-is out")
    if "classes" not in found.model.ir.metadata_props and (classes := class_names(found.model)):
        found.model.ir.metadata_props["classes"] = json.dumps(classes)
    found, made = (found, None) if as_is else simplifying.proven(found, path, data, contract)
    if made is None:
        found.model.save(path, beside=simplifying.BESIDE)
        if found.model.is_large():  # from here on the file's, mapped: what the converter made need not stay in memory
            found = replace(found, model=Model.load(path))
        found, made = simplifying.compared(found, path, data, contract)
    model, told = observing.observed(found, path) if found.foreign is not None else found.model, found.told
    del found  # the source's weights are free to go
    options: Mapping[str, Any] = {
        "source": Path(source).name if isinstance(source, str) else type(source).__name__,
        "inputs": inputs,
        "factory": factory,
        "opset": opset,
        **({} if signature is None else {"signature": signature}),
        **{key: compared.to_json() for key, compared in made.items()},
        **told,
    }
    before = source_files.digest(Path(source)) if isinstance(source, str) else ""
    step = Step(f"converters/{name}", __version__, options, before, model.digest())
    result = with_meaning(with_contract(model.with_step(step), contract, source), meaning, source)
    if fold:
        from edgerun.verbs.folding import folded

        log.info("moving the preprocessing into the graph, and comparing on pictures")
        result = folded(result)
    result.save(path, beside=simplifying.BESIDE)


def _contract(preprocessing: Preprocessing | str | Path | None) -> dict[str, Any] | None:
    """The contract asked for, or read from its file, as JSON values."""
    if isinstance(preprocessing, (str, Path)):
        preprocessing = contracts.read(Path(preprocessing))
    return None if preprocessing is None else preprocessing.to_json()


def _refuse_needless(name: str, source: Any, trust: bool, signature: str | None) -> None:
    """Raise EdgerunError for trust or a signature that this source has no use for."""
    reads = registry.converter(name)
    if trust and not _is_file(source):
        raise EdgerunError("a model object needs no trust", do="leave trust out")
    if trust and not isinstance(reads, Trusting):
        raise EdgerunError(f"converter {name!r} never runs a file's code, trusted or not",
                           wanted=f"--trust with {', '.join(_able(Trusting))}", do="leave --trust out")  # fmt: skip
    if signature is not None and not (_is_file(source) and isinstance(reads, Choosing)):
        raise EdgerunError("this source has no signatures to choose from", got=signature,
                           wanted=f"a file for {' or '.join(_able(Choosing))}", do="leave --signature out")  # fmt: skip


def _able(kind: type) -> list[str]:
    return [name for name in registry.names("converter") if isinstance(registry.converter(name), kind)]


def _opset(reader: str, newest: int, opset: int | None, preferred: int) -> int:
    """The newest opset to write for `reader`, a device or a target, which reads `newest`."""
    if opset is None:
        return min(preferred, newest)
    if not OLDEST_OPSET <= opset <= newest:
        raise EdgerunError(f"{reader!r} cannot use this opset", got=opset, wanted=f"{OLDEST_OPSET} to {newest}")
    return opset


def _reader(source: Any, converter: str | None) -> str:
    """The converter that reads `source`: the one asked for, else the first that recognises it. Raises EdgerunError for
    a file that is none of anybody's, Unsupported when what the converter needs is not installed."""
    if _is_file(source):
        guard_source.check(Path(source))
    name = converter or _recognised(source)
    reads = registry.converter(name)
    if _is_file(source) and Path(source).is_dir() and not reads.recognises(source):
        raise EdgerunError("not a file", got=source, wanted=f"what the converter {name!r} reads", do="leave --from out")
    if reason := registry.missing(reads.requires, reads.extra):
        raise Unsupported(f"converter {name!r} is unavailable here", got=reason)
    return name


def _recognised(source: Any) -> str:
    for name in registry.names("converter"):
        if registry.converter(name).recognises(source):
            return name
    known = "\n    ".join(f"{name}: {registry.converter(name).summary}" for name in registry.names("converter"))
    raise EdgerunError("no converter recognises the source", got=source, wanted=f"one of\n    {known}",
                       do="name the converter with --from, if the file's name misleads")  # fmt: skip
