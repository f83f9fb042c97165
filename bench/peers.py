"""One peer quantizes one model, in a process of its own and in the peer's environment (environments.py).

    python bench/peers.py PEER fp32.onnx calibration.npz OUTPUT [--transformer]

The last line of stdout is JSON: `seconds` of the quantization alone (imports excluded), `versions`, `settings`.
Needs nothing of edgerun. Every peer gets the same samples, all of them, one at a time and streamed from the file,
so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

# No network, and no forks that send things, while we measure.
for switch in ("ORT_DISABLE_TELEMETRY", "NNCF_CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(switch, "1")
# Quark compiles its operators on first import: they stay with its environment, not in the user's cache.
os.environ["TORCH_EXTENSIONS_DIR"] = str(Path(sys.prefix) / "torch_extensions")
PACKAGES = ("amd-quark", "nncf", "nvidia-modelopt", "onnx", "onnxruntime", "onnxsim", "openvino")


class Samples:
    """An uncompressed .npz as samples, read from the file one at a time; ORT's reader protocol included.

    A row is a batch of 1, or a whole feed for a model without a batch axis.
    """

    def __init__(self, path: Path, whole: bool = False) -> None:
        self._path, self._whole = path, whole
        self._members = {
            info.filename.removesuffix(".npy"): _layout(path, info) for info in zipfile.ZipFile(path).infolist()
        }
        self._length = min(shape[0] for _, _, shape in self._members.values())
        self.set_range(0, self._length)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index >= self._length:
            raise IndexError(index)
        return {name: self._row(index, *member) for name, member in self._members.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[index] for index in range(self._length))

    def _row(self, index: int, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape[1:]))
        start = offset + index * count * dtype.itemsize
        row = np.fromfile(self._path, dtype, count, offset=start)
        return row.reshape(shape[1:] if self._whole else (1, *shape[1:]))

    def set_range(self, start_index: int, end_index: int) -> None:
        """ORT: the next `get_next` calls give samples `start_index` to `end_index - 1`."""
        self._next, self._end = start_index, end_index

    def get_first(self) -> dict[str, np.ndarray]:
        """Model Optimizer: the first sample, which `get_next` still gives."""
        return self[0]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """ORT: the next sample, or None at the end."""
        if self._next >= self._end:
            return None
        self._next += 1
        return self[self._next - 1]


def _layout(path: Path, info: zipfile.ZipInfo) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    if info.compress_type != zipfile.ZIP_STORED:
        raise SystemExit(f"{path}: {info.filename} is compressed; write it with numpy.savez")
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
        file.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), os.SEEK_CUR)
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran:
            raise SystemExit(f"{path}: {info.filename} is in Fortran order")
        return file.tell(), dtype, shape


def _ort(
    model: Path,
    samples: Samples,
    output: Path,
    *,
    activation: str,
    method: str,
    only: list[str] | None = None,
    **extra: Any,
) -> None:
    from onnxruntime import quantization as q  # type: ignore[import-untyped]
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(model), str(prepared))
        except Exception as error:  # it raises the base class where symbolic shapes end; its documents say: skip them
            print(f"symbolic shape inference skipped: {error}", file=sys.stderr)
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        q.quantize_static(
            str(prepared),
            str(output),
            samples,
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType[activation],
            weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod[method],
            op_types_to_quantize=only,
            extra_options=extra,
        )


def ort_minmax(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """ONNX Runtime's `quantize_static` with min-max ranges: U8S8, what its documents advise on x86 with VNNI."""
    _ort(model, samples, output, activation="QUInt8", method="MinMax", only=_ops(transformer))


def ort_minmax_s8s8(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """The same with its default types, S8S8."""
    _ort(model, samples, output, activation="QInt8", method="MinMax", only=_ops(transformer))


def ort_percentile(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """U8S8 with percentile ranges, ten samples at a time: all at once need tens of gigabytes on ResNet-50."""
    stride = max(n for n in range(1, 11) if len(samples) % n == 0)  # it must divide them
    only = _ops(transformer)
    _ort(model, samples, output, activation="QUInt8", method="Percentile", only=only, CalibStridedMinMax=stride)


def ort_layers(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """U8S8 with min-max ranges, but only Conv, MatMul and Gemm: what to do where other ops cost accuracy."""
    _ort(model, samples, output, activation="QUInt8", method="MinMax", only=["Conv", "MatMul", "Gemm"])


def _ops(transformer: bool) -> list[str] | None:
    # All ops by default, but on a transformer that quantizes the masked scores (0 and -10000 on one scale).
    return ["MatMul", "Gemm"] if transformer else None


def ort_dynamic(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """ONNX Runtime's `quantize_dynamic`, per channel, MatMul, Gemm and LSTM: activations are scaled as they come."""
    from onnxruntime import quantization as q

    kinds = {"per_channel": True, "weight_type": q.QuantType.QInt8, "op_types_to_quantize": ["MatMul", "Gemm", "LSTM"]}
    q.quantize_dynamic(str(model), str(output), **kinds)


def onnxsim_minmax(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """onnxsim's `quantize_static` with its defaults: min-max ranges at Conv, MatMul and Gemm; all samples at once."""
    _onnxsim(model, samples, output, "minmax")


def onnxsim_auto(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """The same with `method="auto"`: the range estimator is chosen per tensor."""
    _onnxsim(model, samples, output, "auto")


def _onnxsim(model: Path, samples: Samples, output: Path, method: str) -> None:
    import onnx
    import onnxsim  # type: ignore[import-not-found]

    onnx.save(onnxsim.quantize_static(str(model), list(samples), method=method), output)


def nncf_onnx(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """`nncf.quantize` on the ONNX model, defaults, all samples."""
    import nncf  # type: ignore[import-not-found]
    import onnx

    onnx.save(_nncf(nncf, onnx.load(model), samples, transformer), output)


def nncf_ir(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """`nncf.quantize` on the OpenVINO model, defaults, all samples; writes IR."""
    import nncf
    import openvino as ov  # type: ignore[import-untyped]

    ov.save_model(_nncf(nncf, ov.Core().read_model(model), samples, transformer), output)


def _nncf(nncf: Any, model: Any, samples: Samples, transformer: bool) -> Any:
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    return nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=kind)


def quark(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """AMD Quark's default configuration `U8S8_AAWS` (U8S8, percentile 99.999, equalized layers), per channel."""
    from quark.onnx import ModelQuantizer  # type: ignore[import-not-found]
    from quark.onnx.quantization.config import Config, get_default_config  # type: ignore[import-not-found]

    chosen = get_default_config("U8S8_AAWS")
    chosen.per_channel = True
    chosen.op_types_to_quantize = _ops(transformer) or []  # empty: all
    ModelQuantizer(Config(chosen)).quantize_model(str(model), str(output), samples)


def modelopt(model: Path, samples: Samples, output: Path, transformer: bool) -> None:
    """NVIDIA Model Optimizer's `onnx.quantization` for TensorRT: int8, entropy ranges, the rest left in fp32."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory(dir=output.parent) as folder:  # it writes beside its input and its output
        made = Path(folder) / "int8.onnx"
        quantize(
            shutil.copy(model, folder),
            quantize_mode="int8",
            calibration_method="entropy",
            calibration_data_reader=samples,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(made.absolute()),
        )
        made.replace(output)


Peer = Callable[[Path, Samples, Path, bool], None]
PEERS: dict[str, tuple[str, Peer]] = {
    "ort_minmax": (".onnx", ort_minmax),
    "ort_minmax_s8s8": (".onnx", ort_minmax_s8s8),
    "ort_percentile": (".onnx", ort_percentile),
    "ort_layers": (".onnx", ort_layers),
    "ort_dynamic": (".onnx", ort_dynamic),
    "onnxsim_minmax": (".onnx", onnxsim_minmax),
    "onnxsim_auto": (".onnx", onnxsim_auto),
    "nncf_onnx": (".onnx", nncf_onnx),
    "nncf_ir": (".xml", nncf_ir),
    "quark": (".onnx", quark),
    "modelopt": (".onnx", modelopt),
}


def main() -> None:
    """Run one peer and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--transformer", action="store_true", help="say so to peers that have such a switch")
    parser.add_argument("--whole-feeds", action="store_true", help="a row of the calibration data has all axes")
    asked = parser.parse_args()
    suffix, peer = PEERS[asked.peer]
    if asked.output.suffix != suffix:
        parser.error(f"{asked.peer} writes {suffix}")
    samples = Samples(asked.calibration, asked.whole_feeds)
    load(asked.peer)
    asked.output.unlink(missing_ok=True)
    begun = time.perf_counter()
    peer(asked.model, samples, asked.output, asked.transformer)
    seconds = time.perf_counter() - begun
    if not asked.output.exists():  # Quark logs what went wrong and ends well
        raise SystemExit(f"{asked.peer} wrote no model")
    versions = {found.name: found.version for found in distributions() if found.name in PACKAGES}
    print(json.dumps({"seconds": seconds, "samples": len(samples), "versions": versions, "settings": peer.__doc__}))


def load(peer: str) -> None:
    """Import what the peer needs, so that its own seconds are work."""
    import onnx  # noqa: F401

    if peer.startswith("ort"):
        import onnxruntime.quantization  # type: ignore[import-untyped]  # noqa: F401
    elif peer.startswith("onnxsim"):
        import onnxsim  # noqa: F401
    elif peer == "quark":
        import quark.onnx  # type: ignore[import-not-found]  # noqa: F401
    elif peer == "modelopt":
        import modelopt.onnx.quantization  # type: ignore[import-not-found]  # noqa: F401
    else:
        import nncf  # noqa: F401
        import openvino  # noqa: F401


if __name__ == "__main__":
    main()
