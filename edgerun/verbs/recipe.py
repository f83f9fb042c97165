"""Recipe: what a device needs to compile a model itself, and to know that the result is right, in one file.

The file is an `.npz`: the `.onnx` file's bytes, feeds, and a reference's outputs for them, beside a JSON text that says
the rest. Reading it runs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import guard
from edgerun.errors import EdgerunError
from edgerun.npy import read_npz
from edgerun.runtime import Engine, Options, TensorSpec
from edgerun.target import Feeds
from edgerun.verbs.run import write_npz

SUFFIX, FORMAT = ".recipe", 1
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
