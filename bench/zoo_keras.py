"""The zoo's Keras models as files that `edgerun convert` reads."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from bench import zoo_fetch

_FOLDER = "package/ResNet50"
_KERNEL = ("kernel", "bias")
_ORDER = {
    "Conv2D": _KERNEL,
    "Dense": _KERNEL,
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def cifar_cnn(path: Path) -> None:
    """Write the CIFAR-10 CNN's own .h5: raw 0..255 RGB float32 [batch, 32, 32, 3] to scores [batch, 10]."""
    path.write_bytes(zoo_fetch.read(zoo_fetch.CIFAR_CNN, "cifar_10_model/trained_models/cnn_model.h5"))


def resnet50(path: Path) -> None:
    """Write ResNet-50 as .keras: `keras.applications`' architecture with the weights of a TF.js layers model.

    Caffe's preprocessing, float32 BGR [batch, 224, 224, 3], to probabilities [batch, 1000].
    """
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras  # type: ignore[import-untyped]

    manifest = json.loads(zoo_fetch.read(zoo_fetch.RESNET, f"{_FOLDER}/model.json"))
    weights = _weights(manifest["weightsManifest"])
    model = keras.applications.ResNet50(weights=None)  # pyright: ignore[reportArgumentType]
    for layer in manifest["modelTopology"]["model_config"]["config"]["layers"]:
        name, kind = layer["config"]["name"], layer["class_name"]
        if kind not in _ORDER:
            continue
        ours = model.get_layer(keras_name(name))
        if kind == "BatchNormalization":
            ours.epsilon = layer["config"]["epsilon"]  # the source was trained with another one than the library's
        ours.set_weights([weights[f"{name}/{part}"] for part in _ORDER[kind]])
    model.save(path)


def keras_name(name: str) -> str:
    """The original ResNet-50's layer name in `keras.applications`' words: res2a_branch2b is conv2_block1_2_conv."""
    fixed = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", "fc1000": "predictions"}
    if name in fixed:
        return fixed[name]
    match = re.fullmatch(r"(res|bn)(\d)([a-f])_branch(1|2[abc])", name)
    if match is None:
        raise ValueError(f"not a layer of ResNet-50: {name}")
    kind, stage, block, branch = match.groups()
    part = {"1": 0, "2a": 1, "2b": 2, "2c": 3}[branch]
    return f"conv{stage}_block{ord(block) - ord('a') + 1}_{part}_{'conv' if kind == 'res' else 'bn'}"


def _weights(groups: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of a TF.js weights manifest: each group is the concatenation of its shards, tensors back to back."""
    shards = [f"{_FOLDER}/{name}" for group in groups for name in group["paths"]]
    data = zoo_fetch.read_all(zoo_fetch.RESNET, shards)
    arrays: dict[str, np.ndarray] = {}
    for group in groups:
        raw, offset = b"".join(data[f"{_FOLDER}/{name}"] for name in group["paths"]), 0
        for weight in group["weights"]:
            count = int(np.prod(weight["shape"], dtype=np.int64))
            arrays[weight["name"]] = np.frombuffer(raw, np.float32, count, offset).reshape(weight["shape"])
            offset += 4 * count
    return arrays
