"""Pictures of the zoo: CIFAR-10, its upscaled form for ImageNet networks with the class map, and 100 photos."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable

import numpy as np
from PIL import Image

from bench import zoo_fetch

# ImageNet classes that mean a CIFAR-10 class, disjoint, chosen by meaning from the label list before any score was
# seen, and never tuned. CIFAR-10 says: automobiles are sedans, SUVs and the like; trucks are only big ones; pickups are
# neither. ImageNet has no deer: its antelopes stand in. Its plane (726) is a carpenter's, its passenger car (705) a
# train's.
CIFAR_CLASSES: dict[str, tuple[int, ...]] = {
    "airplane": (404, 895),
    "automobile": (436, 468, 511, 609, 627, 656, 661, 751, 817),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": tuple(range(281, 286)),
    "deer": (351, 352, 353),
    "dog": tuple(range(151, 269)),
    "frog": (30, 31, 32),
    "horse": (339,),
    "ship": (403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914),
    "truck": (555, 569, 675, 864, 867),
}
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
CAFFE_MEAN = np.array([103.939, 116.779, 123.68], np.float32)  # blue, green, red
Preprocess = Callable[[np.ndarray], np.ndarray]


@functools.cache
def cifar10(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [n, 32, 32, 3] RGB and labels int64 [n]: "test" (all 10,000) or "train" (the first 10,000)."""
    picture, labels = {"test": ("test_batch", "test_lables"), "train": ("data_batch_1", "train_lables")}[part]
    files = zoo_fetch.read_all(zoo_fetch.CIFAR10, [f"package/{picture}.png", f"package/{labels}.json"])
    pixels = np.asarray(Image.open(io.BytesIO(files[f"package/{picture}.png"])).convert("RGB"))
    images = pixels.reshape(-1, 32, 32, 3)
    return images, np.asarray(json.loads(files[f"package/{labels}.json"]), np.int64)[: len(images)]


def upscaled(images: np.ndarray, size: int = 224) -> np.ndarray:
    """uint8 [n, h, w, 3] to uint8 [n, size, size, 3], bilinear."""
    resized = (Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR) for i in images)
    return np.stack([np.asarray(i) for i in resized])


def mean_std(images: np.ndarray) -> np.ndarray:
    """torchvision's contract: uint8 RGB [n, h, w, 3] to float32 [n, 3, h, w], scaled to 0..1, mean and std removed."""
    scaled = (images.astype(np.float32) / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def paddle(images: np.ndarray) -> np.ndarray:
    """PP-OCR's contract: as `mean_std`, on the channels in the order blue, green, red."""
    return mean_std(images[..., ::-1])


def caffe(images: np.ndarray) -> np.ndarray:
    """Caffe's contract: uint8 RGB [n, h, w, 3] to float32 BGR [n, h, w, 3], mean removed, 0..255 kept."""
    return images[..., ::-1].astype(np.float32) - CAFFE_MEAN


def cifar_scores(outputs: np.ndarray) -> np.ndarray:
    """ImageNet scores [n, 1000] to scores of the ten classes [n, 10]: the largest of each class's members."""
    return np.stack([outputs[:, list(classes)].max(axis=1) for classes in CIFAR_CLASSES.values()], axis=1)


def photos(side: int = 256, size: int = 224) -> np.ndarray:
    """The 100 photos uint8 [100, size, size, 3] RGB: shorter side to `side`, centre crop."""
    names = [f"ai_benchmark/data/classification/{i}.jpg" for i in range(100)]
    files = zoo_fetch.read_all(zoo_fetch.PHOTOS, names)
    return np.stack([_centre(Image.open(io.BytesIO(files[name])).convert("RGB"), side, size) for name in names])


def _centre(image: Image.Image, side: int, size: int) -> np.ndarray:
    scale = side / min(image.size)
    width, height = (round(edge * scale) for edge in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
