"""What a converted model keeps beside its graph: how pictures go in, and what the outputs mean."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgerun import answers, classifiers, contracts, guard_source
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.postprocess import Postprocessing
from edgerun.preprocess import Preprocessing

PROCESSOR = "preprocessor_config.json"  # of a Hugging Face folder
log = logging.getLogger("edgerun")
Contract = TypeVar("Contract", Preprocessing, Postprocessing)


def with_contract(model: Model, given: Mapping[str, Any] | None, source: Any) -> Model:
    """The model with the contract given, else with what its metadata or the source's folder tells, if that fits."""
    if given is not None:
        return model.retold(Preprocessing.from_json(given).fitted(model.inputs).to_json(), model.history)
    found = _first(
        "preprocessing",
        {
            "the metadata": lambda: _fitted(contracts.told(model.metadata), model),
            PROCESSOR: lambda: _fitted(_beside(source, PROCESSOR, "preprocessing", contracts.parsed), model),
        },
    )
    return model.retold(None if found is None else found.to_json(), model.history)


def with_meaning(model: Model, given: Mapping[str, Any] | None, source: Any) -> Model:
    """The same for what the outputs mean: a folder's config says it of a classifier."""
    if given is not None:
        return model.answering(answers.parsed(given, model.outputs).to_json())

    def classes(values: dict[str, Any]) -> Postprocessing | None:
        return answers.parsed(values, model.outputs) if classifiers.classifies(values) else None

    found = _first(
        "post-processing",
        {
            "the metadata": lambda: answers.told(model.metadata, model.outputs),
            guard_source.HF_CONFIG: lambda: _beside(source, guard_source.HF_CONFIG, "post-processing", classes),
        },
    )
    return model.answering(None if found is None else found.to_json())


def short(values: Mapping[str, Any]) -> str:
    """A contract's JSON for a line: how many labels, in place of a thousand."""
    labels = values.get("labels", ())
    return json.dumps({**values, "labels": f"{len(labels)} labels"} if len(labels) > 5 else dict(values))


def class_names(model: Model) -> list[str] | None:
    """The classes of an Ultralytics export in the order of their numbers; None where its metadata has none."""
    props = model.ir.metadata_props
    names = contracts.literal(props, "names") if {"task", "imgsz", "names"} <= set(props) else None
    if not isinstance(names, dict) or list(names) != list(range(len(names))):
        return None
    return [str(name) for name in names.values()]


def _fitted(contract: Preprocessing | None, model: Model) -> Preprocessing | None:
    return None if contract is None else contract.fitted(model.inputs)


def _beside(source: Any, name: str, kind: str, parsed: Callable[[dict[str, Any]], Contract | None]) -> Contract | None:
    """What a file of the folder that is converted tells; None where there is no folder, or no such file in it."""
    path = Path(source) / name if isinstance(source, str) else None
    return parsed(contracts.values(path, kind)) if path is not None and path.is_file() else None


def _first(kind: str, tellers: Mapping[str, Callable[[], Contract | None]]) -> Contract | None:
    """What the first of them tells; one that is not understood, or does not fit, is left out with a word."""
    for where, tell in tellers.items():
        try:
            if (found := tell()) is not None:
                return found
        except EdgerunError as error:
            log.info("the %s contract in %s is left out: %s", kind, where, error)
    return None
