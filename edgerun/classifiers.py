"""What a classifier's outputs mean, as the `config.json` of Transformers and of timm tells it.

    Transformers   architectures, id2label, problem_type
    timm           label_names beside pretrained_cfg

What is not understood is refused by name: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgerun.postprocess import Postprocessing, not_understood

_CLASSIFIERS = ("ForImageClassification", "ForSequenceClassification", "ForAudioClassification")


def parsed(values: Mapping[str, Any]) -> Postprocessing:
    """The contract that a file's values hold, of the kind that their keys tell."""
    return transformers(values) if "id2label" in values else timm(values)


def transformers(values: Mapping[str, Any]) -> Postprocessing:
    """`config.json` of a classifier: softmax, or sigmoid above ½ where classes don't exclude each other."""
    if not classifies(values):
        raise not_understood(
            "architectures", values.get("architectures"), f"one that ends with {', '.join(_CLASSIFIERS)}"
        )
    how = values.get("problem_type")
    if how not in (None, "single_label_classification", "multi_label_classification"):
        raise not_understood("problem_type", how, "single_label_classification or multi_label_classification")
    names = values["id2label"]
    given = {str(key): name for key, name in names.items()} if isinstance(names, Mapping) else {}
    labels = [given.get(str(number)) for number in range(len(given))]
    if not labels or None in labels:
        raise not_understood("id2label", str(names)[:80], "a label for every number from 0 on")
    several = {"activation": "sigmoid", "threshold": 0.5} if how == "multi_label_classification" else {}
    return Postprocessing.from_json({"kind": "classes", "activation": "softmax", "labels": labels, **several})


def classifies(values: Mapping[str, Any]) -> bool:
    """Does a `config.json` of Transformers speak of a classifier? Every config has labels, also where nothing does."""
    kinds = values.get("architectures")
    return isinstance(kinds, list) and bool(kinds) and str(kinds[0]).endswith(_CLASSIFIERS)


def timm(values: Mapping[str, Any]) -> Postprocessing:
    """timm's `config.json`: softmax, and `label_names` where it has them."""
    cfg = values.get("pretrained_cfg")
    names = values.get("label_names") or (cfg.get("label_names") if isinstance(cfg, Mapping) else None) or []
    if not isinstance(names, list):
        raise not_understood("label_names", str(names)[:80], "a list of texts")
    return Postprocessing.from_json({"kind": "classes", "activation": "softmax", "labels": names})
