"""Recipe: what a device needs to compile a model itself, and to know that the result is right, in one file.

The file is an `.npz`: the `.onnx` file's bytes, feeds, and a reference's outputs for them, beside a JSON text that says
the rest. Reading it runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import devices, files, guard, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.npy import read_npz
from edgerun.passes import Feeds, Finishing
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Engine, Options, SelfCheck, TensorSpec
from edgerun.runtime.progress import listener
from edgerun.verbs.feeds import feeds_for
from edgerun.verbs.load import target_for
from edgerun.verbs.run import write_npz

log = logging.getLogger("edgerun")
SUFFIX, FORMAT = ".recipe", 1
SAMPLES = 4  # of data, that are compared
TEXT, MODEL = "recipe", "model"  # names of arrays; the others are `SIDE.FEED.INDEX`
SIDES = ("input", "output", "exact")


@dataclass(frozen=True)
class Recipe:
    """A model as `engine` (the bytes of its `.onnx` file), the options to compile it with, and what it has to compute.

    `device` is the name of the one that it is for, `expects` what that one's fingerprint has to say. `outputs` are what
    `reference` computes for `feeds`; `exact` those of the float model, where the model rounds and it is known.
    `told` are the model's history and contracts.
    """

    engine: Engine
    options: Options
    device: str
    expects: Mapping[str, str]
    rounds: bool
    reference: str
    feeds: Sequence[Feeds]
    outputs: Sequence[dict[str, np.ndarray]]
    exact: Sequence[dict[str, np.ndarray]] = ()
    told: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, atomically, the same bytes for the same recipe."""
        assert isinstance(self.engine.payload, bytes)
        groups = dict(zip(SIDES, (self.feeds, self.outputs, self.exact), strict=True))
        text = {
            "format": FORMAT,
            "target": self.engine.target,
            "inputs": [asdict(spec) for spec in self.engine.inputs],
            "outputs": [asdict(spec) for spec in self.engine.outputs],
            "digest": self.engine.digest,
            "sha256": hashlib.sha256(self.engine.payload).hexdigest(),
            "options": asdict(self.options),
            "device": self.device,
            "expects": dict(self.expects),
            "rounds": self.rounds,
            "reference": self.reference,
            "names": {side: [list(arrays) for arrays in group] for side, group in groups.items()},
            "told": dict(self.told),
        }
        stored = {TEXT: json.dumps(text, sort_keys=True).encode(), MODEL: self.engine.payload}
        arrays = {name: np.frombuffer(data, np.uint8) for name, data in stored.items()}
        for side, group in groups.items():
            for number, values in enumerate(group):
                arrays |= {f"{side}.{number}.{index}": array for index, array in enumerate(values.values())}
        write_npz(path, arrays)


def read(path: Path) -> Recipe:
    """A recipe from its file. Raises EdgerunError for one that is damaged, or is none."""
    guard.check_file(path)
    if path.suffix != SUFFIX:
        what, do = "this is no recipe", f"edgerun compile MODEL.onnx --device NAME -o NAME{SUFFIX}"
        raise EdgerunError(what, got=path.name, wanted=f"a {SUFFIX} file", do=do)
    stored = read_npz(path)
    try:
        text = json.loads(stored[TEXT].whole().tobytes())
        model = stored[MODEL].whole().tobytes()
        if text["format"] != FORMAT:
            raise EdgerunError("the recipe was written by another version", got=text["format"], wanted=str(FORMAT))
        if hashlib.sha256(model).hexdigest() != text["sha256"]:
            raise ValueError("its model is not the one that was written")
        guard.check_bytes(model, path)
        groups = {
            side: [
                {name: stored[f"{side}.{number}.{index}"].whole() for index, name in enumerate(names)}
                for number, names in enumerate(text["names"][side])
            ]
            for side in SIDES
        }
        inputs, outputs = (
            tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in text[side])
            for side in ("inputs", "outputs")
        )
        options = text["options"]
        sizes, usual = (
            {name: tuple(size) for name, size in options.get(key, {}).items()} for key in ("sizes", "usual")
        )
        return Recipe(
            Engine(text["target"], model, inputs, outputs, digest=text["digest"]),
            Options(options["threads"], options["extra"], sizes, usual=usual), text["device"], text["expects"],
            text["rounds"], text["reference"], groups["input"], groups["output"], groups["exact"],
            {**{key: text["told"][key] for key in ("history", "preprocessing")},
             "postprocessing": text["told"].get("postprocessing")},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EdgerunError("this is no build recipe of edgerun's", got=f"{path}: {error}"[:300],
                           do="write it again: edgerun compile … -o NAME.recipe") from error  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """What was written: for which target; the comparison that it passed, or, of a recipe, the device that it is for
    and what was tried of it here; and the options that the file does not keep, so that who runs it gives them again."""

    target: str
    check: SelfCheck | None = None
    for_device: str = ""
    tried: str | None = None
    again: tuple[str, ...] = ()


def compiled(
    model: str | Path,
    output: str | Path,
    *,
    target: str | None = None,
    device: str | None = None,
    options: Options | None = None,
    data: Any = None,
    preprocessing: Preprocessing | str | Path | None = None,
    original: str | Path | None = None,
    force: bool = False,
) -> Compiled:
    """Write `model` as an engine that was compared here, or (`.recipe`) as what a device compiles and compares itself.

    `data` are feeds to compare on, of which the first samples are taken; `device` names who shall finish a recipe, or
    run an `.ort` file.
    Raises as `edgerun.compile` does.
    """
    from edgerun.model import Model
    from edgerun.verbs.compile import compile

    output, options = Path(output), options or Options()
    where = devices.find(device) if device is not None else None
    if output.suffix == SUFFIX and target is None and device is None:
        raise EdgerunError("a recipe is for another machine, and nothing says which", do="give --device, or --target")
    name = target or (where.target if where is not None else target_for(output.suffix))
    files.refuse_same(output, model, original)
    files.refuse_overwrite(output, force)
    listener()("reading", 0, 0)
    loaded = Model.load(model)
    feeds: list[Feeds] = []
    if data is not None:
        feeds = list(feeds_for(loaded.inputs, model, data, preprocessing=preprocessing, batch=1, limit=SAMPLES))
    if output.suffix != SUFFIX:
        engine = compile(
            loaded, name, options, feeds=feeds, original=original, output=output, device=where, force=force
        )
        if options.usual and not engine.usual:
            log.info("%s has nothing to make ready for known shapes of this model", engine.target)
        keeps = getattr(registry.target(engine.target), "keeps", frozenset(options.extra))
        again = tuple(f"{key}={value}" for key, value in options.extra.items() if key not in keeps)
        return Compiled(engine.target, engine.check, device or "", again=again)
    made, tried = _made(loaded, name, where, options, feeds, original)
    files.refuse_overwrite(output, force)
    made.save(output)
    return Compiled(name, None, device or "another machine", tried)


def _made(
    model: Any, name: str, device: devices.Device | None, options: Options, feeds: Sequence[Feeds],
    original: str | Path | None,
) -> tuple[Recipe, str]:  # fmt: skip
    """The recipe, and what could be tried of it here. Raises EdgerunError for what the device would have to refuse:
    a node, an option, a size, or a feed of another size."""
    from edgerun.verbs import compile as verb
    from edgerun.verbs import work

    found = registry.target(name, usable=False)
    if not isinstance(found, Finishing):
        others = "".join(f", or -o NAME{suffix} with it" for suffix in getattr(found, "writes", ())[:1])
        do = f"-o NAME{found.suffixes[0]} without --device{others}"
        raise Unsupported(f"{name} has nothing to finish on a device: its files run as they are", do=do)
    ranges = found.ranges(model.inputs, options, device)
    if reason := found.available():
        tried = f"not tried here: {reason}"
    elif issues := found.check(model):
        raise verb.unsupported(name, issues)
    else:
        here = found.device()
        tried = f"{here['runtime']} {here['version']} takes every node; it was not compiled"
    listener()("computing what the device compares with", 0, 0)
    _check_sizes(feeds, model.inputs, ranges)
    label, pairs = verb.reference(model, name, replace(options, sizes=ranges), feeds)
    inputs, rounds = [feed for feed, _ in pairs], work.rounds(model)
    _check_sizes(inputs, model.inputs, ranges)
    exact = verb.exact(original, inputs) if original is not None and rounds else ()
    told = {"history": [asdict(step) for step in model.history], "preprocessing": model.preprocessing,
            "postprocessing": model.postprocessing}  # fmt: skip
    engine = Engine(name, model.to_bytes(), model.inputs, model.outputs, {}, model.digest())
    outputs = [result for _, result in pairs]
    whom, expects = ("", {}) if device is None else (device.name, _expected(device))
    return Recipe(engine, options, whom, expects, rounds, label, inputs, outputs, exact, told), tried


def _check_sizes(
    feeds: Sequence[Feeds], inputs: Sequence[TensorSpec], ranges: Mapping[str, tuple[int, int, int]]
) -> None:
    """Raise EdgerunError for a feed that an engine for these sizes would refuse."""
    for feed in feeds:
        for spec in inputs:
            for dim, size in zip(spec.shape, np.shape(feed[spec.name]), strict=False):
                least, _, most = ranges.get(str(dim), (size, size, size))
                if not least <= size <= most:
                    raise EdgerunError(
                        "a feed to compare on has another size than the engine takes", got=f"{spec.name}: {dim}={size}",
                        wanted=f"{least} to {most}", do=f"a --size of {dim} with {size} in it, or other --data",
                    )  # fmt: skip


def _expected(device: devices.Device) -> dict[str, str]:
    """What a fingerprint made on the device has to say: its architecture, and the compute capability of its GPU."""
    capability = device.value("capability") or ""
    return {"arch": device.arch} | ({"capability": capability} if capability else {})
