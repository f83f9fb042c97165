"""The demo's data and networks: handwritten digits, and one small CNN written in PyTorch and in Keras."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 16  # pixels: the 8x8 digits, every pixel four times
EPOCHS, BATCH, RATE = 8, 50, 3e-3
SPLIT = (900, 997)  # training before the first, calibration before the second, the rest for testing


@dataclass(frozen=True)
class Part:
    """Pictures float32 [n, 16, 16] in 0..1 and their digits int64 [n]."""

    pictures: np.ndarray
    labels: np.ndarray

    def save(self, path: Path, layout: str) -> None:
        """Write `image` with its channel axis in `layout` (NCHW or NHWC), and `labels`, as `.npz`."""
        np.savez(path, image=np.expand_dims(self.pictures, 1 if layout == "NCHW" else 3), labels=self.labels)


def digits() -> tuple[Part, Part, Part]:
    """scikit-learn's 1,797 digits, shuffled once: training, calibration and test parts that share no picture."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pictures, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    small = (pictures[order] / 16).astype(np.float32).reshape(-1, 8, 8)
    large = small.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)
    return tuple(Part(*cut) for cut in zip(np.split(large, SPLIT), np.split(labels[order], SPLIT), strict=True))  # type: ignore[return-value]


def cnn() -> Any:
    """The PyTorch network: image float32 [batch, 1, 16, 16] -> logits [batch, 10]. The factory for `--factory`."""
    from torch import nn

    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32, 1), *block(32, 64, 2), *block(64, 64, 1), *block(64, 128, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def train_pytorch(train: Part, path: Path) -> None:
    """Train `cnn` and save its state_dict."""
    import torch

    torch.set_num_threads(1)  # pictures so small that a second thread costs more than it brings
    torch.manual_seed(0)
    net = cnn()
    pictures, labels = torch.from_numpy(train.pictures)[:, None], torch.from_numpy(train.labels)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).view(-1, BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(pictures[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch.save(net.state_dict(), path)


def train_keras(train: Part, path: Path) -> None:
    """Train the same network in Keras, image float32 [batch, 16, 16, 1] -> logits, and save it as `.keras`."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras  # type: ignore[import-untyped]
    import torch

    torch.set_num_threads(1)
    keras.utils.set_random_seed(0)
    layers: list[Any] = [keras.Input((SIZE, SIZE, 1), name="image")]
    for filters, stride in ((32, 1), (64, 2), (64, 1), (128, 2)):
        layers += [keras.layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)]
        layers += [keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    net: Any = keras.Sequential(layers)
    net.compile(keras.optimizers.Adam(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(train.pictures[..., None], train.labels, BATCH, EPOCHS, verbose=0)
    net.save(path)
