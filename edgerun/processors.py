"""The preprocessing contract as Transformers and timm write it: what their files say, as they compute it.

    preprocessor_config.json   Transformers' image processors: image_processor_type, do_resize, size, image_mean, …
    config.json                timm's: pretrained_cfg with input_size, crop_pct, interpolation, mean, std

What is not understood is refused by name: nothing is guessed, nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgerun.preprocess import Preprocessing, not_understood

PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers, 0..5
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CROPPED = {"do_center_crop": True, "size": {"shortest_edge": 224}, "crop_size": 224}
# What an image processor does where its file says nothing (Transformers 4 and 5); `square`: what an `int` size means.
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {**HALF, "resample": 2, "size": 224, "square": True},
    "DeiT": {**HALF, "resample": 3, "size": 256, "square": True, "do_center_crop": True, "crop_size": 224},
    "Beit": {**HALF, "resample": 3, "size": 224, "square": True, "crop_size": 224},
    "Siglip": {**HALF, "resample": 3, "size": 224, "square": True},
    "Blip": {**CLIP, "resample": 3, "size": 384, "square": True},
    "Pvt": {**IMAGENET, "resample": 3, "size": 224, "square": True},
    "Segformer": {**IMAGENET, "resample": 2, "size": 512, "square": True},
    "CLIP": {**CLIP, "resample": 3, **_CROPPED},
    "ChineseCLIP": {**CLIP, "resample": 3, **_CROPPED},
    "Bit": {**CLIP, "resample": 3, **_CROPPED},
    "Levit": {**IMAGENET, "resample": 3, **_CROPPED},
    "MobileNetV1": {**HALF, "resample": 2, **_CROPPED, "size": {"shortest_edge": 256}},
    "MobileNetV2": {**HALF, "resample": 2, **_CROPPED, "size": {"shortest_edge": 256}},
    "MobileViT": {"do_normalize": False, "resample": 3, **_CROPPED, "crop_size": 256, "do_flip_channel_order": True},
    "ConvNext": {**HALF, "resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 0.875},
    "EfficientNet": {**HALF, "resample": 3, "size": 346, "square": True, "crop_size": 289, "include_top": True},
}
_KNOWN = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "data_format", "do_pad", "image_processor_type", "feature_extractor_type",
}  # fmt: skip
_OWN = {
    "ConvNext": {"crop_pct"},
    "EfficientNet": {"rescale_offset", "include_top"},
    "MobileViT": {"do_flip_channel_order"},
}
# Say nothing about the pixels of an RGB picture: who calls it, how, and what becomes of labels.
_SILENT = {
    "processor_class", "return_tensors", "input_data_format", "do_convert_rgb", "do_reduce_labels", "reduce_labels",
    "default_to_square", "device", "disable_grouping", "_valid_processor_keys",
}  # fmt: skip
_TIMM_SILENT = {
    "url", "file", "hf_hub_id", "hf_hub_filename", "architecture", "tag", "custom_load", "num_classes", "pool_size",
    "test_input_size", "test_crop_pct", "test_crop_mode", "fixed_input_size", "min_input_size", "first_conv",
    "classifier", "license", "origin_url", "paper_ids", "paper_name", "notes", "label_names",
    "label_descriptions", "num_features", "head_norm", "source", "strict", "state_dict",
}  # fmt: skip


def parsed(values: Mapping[str, Any]) -> Preprocessing:
    """The contract that a file's values hold, of the kind that their keys tell."""
    if isinstance(timm_cfg := values.get("pretrained_cfg"), Mapping):
        return timm(timm_cfg)
    if {"image_processor_type", "feature_extractor_type"} & set(values):
        return transformers(values)
    if "input_size" in values:
        return timm(values)
    raise not_understood("image_processor_type", "nothing", f"one of {', '.join(PROCESSORS)}")


def transformers(values: Mapping[str, Any]) -> Preprocessing:
    """`preprocessor_config.json` of an image processor in PROCESSORS, as its Pillow implementation computes it."""
    told = str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    kind = told
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind not in PROCESSORS:
        raise not_understood("image_processor_type", told, f"one of {', '.join(PROCESSORS)}")
    known = _KNOWN | _OWN.get(kind, set())
    for key, value in values.items():
        if key not in known | _SILENT and value not in (None, False):
            raise not_understood(key, value, f"of {kind}: {', '.join(sorted(known))}")
    flags = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    cfg = {**flags, **PROCESSORS[kind], **{k: v for k, v in values.items() if v is not None}}
    if not cfg["do_resize"] or cfg.get("do_pad"):
        key = "do_pad" if cfg["do_resize"] else "do_resize"
        raise not_understood(key, cfg[key], "pictures that are resized to one size, and not padded")
    geometry = _sized(kind, cfg)
    scale, mean, std = _normalization(kind, cfg)
    layouts = {"channels_first": "NCHW", "channels_last": "NHWC"}
    if (layout := cfg.get("data_format", "channels_first")) not in layouts:
        raise not_understood("data_format", layout, "channels_first or channels_last")
    if type(cfg["resample"]) is not int or not 0 <= cfg["resample"] < len(PILLOW):
        raise not_understood("resample", cfg["resample"], ", ".join(f"{i} ({name})" for i, name in enumerate(PILLOW)))
    return Preprocessing.from_json(
        {**geometry, "interpolation": PILLOW[cfg["resample"]], "centre": "floor", "scale": scale, "mean": mean,
         "std": std, "layout": layouts[layout], "colour": "BGR" if cfg.get("do_flip_channel_order") else "RGB"}
    )  # fmt: skip


def _sized(kind: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Resize and crop of an image processor."""
    shortest, exact = _edges("size", cfg["size"], bool(cfg.get("square")))
    if kind == "ConvNext":
        if not shortest:
            raise not_understood("size", cfg["size"], '{"shortest_edge": pixels}')
        if shortest >= 384:
            return {"size": [shortest, shortest]}
        covered = int(shortest / _share(cfg["crop_pct"]))
        return {"size": [covered, covered], "resize": "shortest", "crop": [shortest, shortest]}
    if kind == "Levit" and shortest:
        shortest = int(256 / 224 * shortest)
    size = exact or [shortest, shortest]
    crop = _edges("crop_size", cfg["crop_size"], True)[1] if cfg.get("do_center_crop") else None
    if crop is None and not exact:
        raise not_understood("size", cfg["size"], "pictures of one size: height and width, or do_center_crop")
    if crop is not None and any(c > s for c, s in zip(crop, size, strict=True)):
        raise not_understood("crop_size", cfg["crop_size"], f"at most {size}: a larger crop is padded")
    return {"size": size, "resize": "stretch" if exact else "shortest", "crop": crop}


def _edges(key: str, size: Any, square: bool) -> tuple[int, list[int] | None]:
    """(shortest edge, None) or (0, [height, width]) of a size as Transformers writes it."""
    given = dict(size) if isinstance(size, Mapping) else size
    if type(given) is int:
        given = {"height": given, "width": given} if square else {"shortest_edge": given}
    if isinstance(given, dict) and all(type(v) is int and v > 0 for v in given.values()):
        if set(given) == {"shortest_edge"}:
            return given["shortest_edge"], None
        if set(given) == {"height", "width"}:
            return 0, [given["height"], given["width"]]
    raise not_understood(key, size, 'pixels, {"shortest_edge": …} or {"height": …, "width": …}')


def _normalization(kind: str, cfg: Mapping[str, Any]) -> tuple[float, list[float], list[float]]:
    """scale, mean and std of (x·scale - mean) / std. EfficientNet's may take 1 off first and divide by std twice:
    ((x·scale - 1 - mean) / std - 0) / std."""
    scale = _number("rescale_factor", cfg["rescale_factor"]) if cfg["do_rescale"] else 1.0
    mean, std = [0.0], [1.0]
    if cfg["do_normalize"]:
        mean, std = _row("image_mean", cfg["image_mean"]), _row("image_std", cfg["image_std"])
    if cfg.get("rescale_offset") and cfg["do_rescale"]:
        mean = [m + 1 for m in mean]
    if kind == "EfficientNet" and cfg["include_top"]:
        twice = _row("image_std", cfg["image_std"])
        std = [a * b for a, b in zip(std * (len(twice) // len(std)), twice, strict=True)]
    return scale, mean, std


def timm(values: Mapping[str, Any]) -> Preprocessing:
    """timm's `pretrained_cfg`, as `create_transform(**resolve_data_config(cfg))` computes it for evaluation."""
    known = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    for key in values:
        if key not in known and key not in _TIMM_SILENT:
            raise not_understood(key, values[key], ", ".join(known))
    cfg = {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center", "mean": IMAGENET["image_mean"],
           "std": IMAGENET["image_std"], **{k: v for k, v in values.items() if v is not None}}  # fmt: skip
    size = cfg.get("input_size")
    if not (isinstance(size, (list, tuple)) and len(size) == 3 and size[0] == 3 and all(type(s) is int for s in size)):
        raise not_understood("input_size", size, "[3, height, width]")
    crop = list(size[1:])
    scaled = [math.floor(side / _share(cfg["crop_pct"])) for side in crop]
    mode = cfg["crop_mode"]
    if mode not in ("center", "squash") or (mode == "center" and scaled[0] != scaled[1]):
        raise not_understood("crop_mode", f"{mode} for {crop}", "center for squares, or squash")
    if cfg["interpolation"] not in PILLOW:
        raise not_understood("interpolation", cfg["interpolation"], ", ".join(PILLOW))
    return Preprocessing.from_json(
        {"size": scaled, "resize": "shortest" if mode == "center" else "stretch", "crop": crop,
         "interpolation": cfg["interpolation"], "scale": 1 / 255, "mean": _row("mean", cfg["mean"]),
         "std": _row("std", cfg["std"])}
    )  # fmt: skip


def _row(key: str, value: Any) -> list[float]:
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return [_number(key, number) for number in numbers]


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise not_understood(key, value, "a number")
    return float(value)


def _share(value: Any) -> float:
    if not 0.01 <= (share := _number("crop_pct", value)) <= 1:
        raise not_understood("crop_pct", value, "0.01 to 1")
    return share
