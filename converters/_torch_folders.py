"""Hugging Face's folders: `config.json` names a class of `transformers`, `*.safetensors` hold its weights."""

from __future__ import annotations

import inspect
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import guard_source
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import TensorSpec

_LONGEST_HEADER = 100 << 20  # bytes, as the format's own reader has it
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
# What of a config asks `transformers` for code from elsewhere, or for other libraries.
_CODE = ("auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation",
         "_attn_implementation_internal", "experts_implementation", "_experts_implementation_internal")  # fmt: skip
log = logging.getLogger("edgerun")


def is_folder(path: Path) -> bool:
    """Does `path` hold a config and weights?"""
    return (path / guard_source.HF_CONFIG).is_file() and any(path.glob("*.safetensors"))


def tensors(path: Path) -> dict[str, Any]:
    """The tensors of a `.safetensors` file, or of all in a folder. Raises EdgerunError for a damaged one.

    The format: u64 length, a JSON header {name: dtype, shape, data_offsets}, the data.
    """
    if path.is_dir():
        return {name: tensor for part in sorted(path.glob("*.safetensors")) for name, tensor in tensors(part).items()}
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST_HEADER, path.stat().st_size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        data = np.fromfile(path, np.uint8, offset=8 + length)
        return {name: _tensor(data, **entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:  # also torch's, of shapes
        got = f"{type(error).__name__}: {error}"[:300]
        raise EdgerunError(f"{path.name}: the file is truncated or damaged", got=got,
                           do="save or download it again") from error  # fmt: skip


def _tensor(data: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> Any:
    import torch

    kind, (begin, end) = getattr(torch, _DTYPES[dtype]), data_offsets
    numbers = (*shape, begin, end)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or not begin <= end <= len(data):
        raise ValueError(f"offsets {data_offsets} of {len(data)} bytes")
    raw = torch.from_numpy(data[begin:end].copy())
    return raw.view(kind).reshape(shape) if begin < end else torch.empty(shape, dtype=kind)


def model(path: Path) -> Any:
    """The model of a folder in eval mode, in float32: the class that its config names, by `transformers`.

    Nothing of the folder is run: code that it brings is left alone, and pickles are not read. Raises Unsupported where
    `transformers` is not installed or does not know the class, EdgerunError where weights are missing.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers  # type: ignore[import-not-found]
    except ImportError:
        do = "pip install transformers, or name what builds it: --factory module:callable"
        raise Unsupported("the folder names a class of transformers, which is not installed", got=path.name,
                          do=do) from None  # fmt: skip
    import torch

    told = _config(path)
    name = next(iter(told.get("architectures") or ()), "")
    kind = told.get("model_type", "")
    cls: Any = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    base = getattr(transformers, "PreTrainedModel")  # noqa: B009 (the module has no types)
    if kind not in transformers.CONFIG_MAPPING or not _is_model(cls, base):
        raise Unsupported(f"transformers {transformers.__version__} does not know the model",
                          got=f"model_type {kind!r}, architecture {name!r}",
                          do="name what builds it: --factory module:callable")  # fmt: skip
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict({k: v for k, v in told.items() if k not in _CODE})
        config.use_cache = False
        found, info = cls.from_pretrained(str(path), config=config, dtype=torch.float32, use_safetensors=True,
                                          local_files_only=True, output_loading_info=True)  # fmt: skip
    except Exception as error:  # its own checks of values and shapes raise anything
        raise EdgerunError("transformers cannot build the model of the folder", got=first_line(error)) from error
    if missing := sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}):
        raise EdgerunError("the folder lacks weights of its own model", got=", ".join(missing[:5]),
                           do="save it again with save_pretrained")  # fmt: skip
    if unused := sorted(info["unexpected_keys"]):
        log.info("%d tensors of the folder are not %s's: %s", len(unused), name, ", ".join(unused[:3]))
    return found.eval()


def _is_model(found: Any, base: type) -> bool:
    return isinstance(found, type) and issubclass(found, base)


def _config(path: Path) -> dict[str, Any]:
    try:
        told = json.loads((path / guard_source.HF_CONFIG).read_bytes())
    except (ValueError, RecursionError) as error:
        raise EdgerunError("the config is no JSON", got=str(error)[:200]) from error
    if not isinstance(told, dict):
        raise EdgerunError("the config is no table", got=type(told).__name__)
    if "quantization_config" in told:
        raise Unsupported("the folder's weights are quantized by another tool", got=guard_source.HF_CONFIG,
                          do="give the float model: edgerun compress quantizes it")  # fmt: skip
    return told


def inputs(found: Any) -> list[TensorSpec]:
    """What a model takes, as its config tells: token ids and their mask, a picture, or sound; [] where it does not."""
    takes, config = inspect.signature(found.forward).parameters, found.config
    main = found.main_input_name
    if getattr(config, "is_encoder_decoder", False):
        return []
    if main == "input_ids":
        names = [main, *(["attention_mask"] if "attention_mask" in takes else [])]
        if "token_type_ids" in takes and getattr(config, "type_vocab_size", 0) > 1:
            names.append("token_type_ids")
        return [TensorSpec(name, "int64", ("batch", "length")) for name in names]
    if main == "pixel_values" and (size := getattr(config, "image_size", None)):
        height, width = (size, size) if isinstance(size, int) else size
        return [TensorSpec(main, "float32", ("batch", getattr(config, "num_channels", 3), height, width))]
    return [TensorSpec(main, "float32", ("batch", "samples"))] if main == "input_values" else []
