"""Models over 2 GB: seconds and peak memory of every verb on one of 3.2 GB: `python -m bench.big`.

Twelve Gemm layers of 8192 x 8192 float32 whose weights lie in a sparse file: zeros, but for a block in the corner of
each, so that what they compute is known from the blocks alone. The results need 8 GB of disk while it runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.processes import measured
from edgerun import files
from edgerun.runtime import machine

RESULTS = Path(__file__).with_name("results") / "big.json"
ROOT = Path(__file__).resolve().parent.parent
BLOCK = 64  # rows and columns of each weight that are not zero
Layers = list[tuple[np.ndarray, np.ndarray]]  # the block [BLOCK, BLOCK] and the bias [width] of each


def sparse(path: Path, layers: int, width: int) -> Layers:
    """Write y = Gemm(... relu(Gemm(x)) ...) to `path` and its weights, [width, width] each, to `<path>.data`."""
    draw, size, data = np.random.default_rng(0), 4 * width * width, path.with_name(path.name + ".data")
    found: Layers = []
    nodes, tensors, value = [], [], "x"
    with open(data, "wb") as file:
        file.truncate(layers * size)
        for index in range(layers):
            block = (draw.standard_normal((BLOCK, BLOCK)) / BLOCK**0.5).astype(np.float32)
            bias = (0.1 * draw.standard_normal(width)).astype(np.float32)
            found.append((block, bias))
            for row, values in enumerate(block):
                file.seek(index * size + 4 * width * row)
                file.write(values.tobytes())
            weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[width, width])
            weight.data_location = TensorProto.EXTERNAL
            for key, text in (("location", data.name), ("offset", index * size), ("length", size)):
                weight.external_data.add(key=key, value=str(text))
            tensors += [weight, numpy_helper.from_array(bias, f"b{index}")]
            last = index == layers - 1
            out = "y" if last else f"g{index}"
            nodes.append(helper.make_node("Gemm", [value, f"w{index}", f"b{index}"], [out], f"gemm{index}"))
            if not last:
                nodes.append(helper.make_node("Relu", [out], [f"r{index}"], f"relu{index}"))
            value = f"r{index}"
    door = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", width]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "big", door[:1], door[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return found


def computed(layers: Layers, x: np.ndarray) -> np.ndarray:
    """What the model of these layers computes for x [batch, width], in float64."""
    value = x.astype(np.float64)
    for index, (block, bias) in enumerate(layers):
        product = np.tile(bias.astype(np.float64), (len(value), 1))
        product[:, :BLOCK] += value[:, :BLOCK] @ block
        value = product if index == len(layers) - 1 else np.maximum(product, 0)
    return value


def build(layers: int = 12, width: int = 8192) -> Any:
    """The same network in PyTorch, its weights not set: the factory of the state_dict that `state` writes."""
    import torch

    linear = [torch.nn.Linear(width, width, device="meta").to_empty(device="cpu") for _ in range(layers)]
    parts = [part for layer in linear for part in (layer, torch.nn.ReLU())]
    return torch.nn.Sequential(*parts[:-1])


def state(path: Path, found: Layers) -> None:
    """Write the state_dict of `build` with these weights."""
    import torch

    width, tensors = len(found[0][1]), dict[str, torch.Tensor]()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for index, (block, bias) in enumerate(found):
            zeros = np.memmap(Path(folder, str(index)), np.float32, "w+", shape=(width, width))  # a hole in the disk
            zeros[:BLOCK, :BLOCK] = block.T
            tensors |= {f"{2 * index}.weight": torch.from_numpy(zeros), f"{2 * index}.bias": torch.from_numpy(bias)}
        torch.save(tensors, path)


def rows(folder: Path) -> list[tuple[str, list[str]]]:
    """Every verb and its arguments, in an order in which each finds what it reads."""
    big, small, data = f"{folder}/big.onnx", f"{folder}/small.onnx", f"{folder}/x.npz"
    return [
        ("inspect", ["inspect", big]),
        ("check", ["check", big, "--target", "onnxruntime"]),
        ("run", ["run", big, "--feeds", data, "-o", f"{folder}/y.npz"]),
        ("run MEMORY=small", ["run", big, "--feeds", data, "-o", f"{folder}/z.npz", "--option", "MEMORY=small"]),
        ("convert ONNX", ["convert", big, "-o", f"{folder}/out.onnx"]),
        ("convert PyTorch", ["convert", f"{folder}/big.pt", "--factory", "bench.big:build", "--input",
                             "x:float32[batch,8192]", "-o", f"{folder}/out.onnx"]),
        ("compile", ["compile", big, "--target", "onnxruntime", "-o", f"{folder}/out.onnx"]),
        ("compress w4a16_b32", ["compress", big, "--scheme", "w4a16_b32", "-o", small]),
        ("compare", ["compare", big, small, "--data", data]),
        ("compress w8a16", ["compress", big, "--scheme", "w8a16", "-o", f"{folder}/out.onnx"]),
        ("compress w8a8_dynamic", ["compress", big, "--scheme", "w8a8_dynamic", "--placement", "rules", "-o",
                                   f"{folder}/out.onnx"]),
    ]  # fmt: skip


@click.command()
@click.option("--layers", default=12, show_default=True, help="Of 268 MB each.")
@click.option("--only", multiple=True, metavar="ROW", help="Rows by the beginning of their names.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the models are written; default: temporary.")
def main(layers: int, only: tuple[str, ...], folder: Path | None) -> None:
    """Print one line a verb; those on twelve layers are also kept."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        here, found = Path(place), []
        blocks = sparse(here / "big.onnx", layers, 8192)
        np.savez(here / "x.npz", x=np.random.default_rng(1).standard_normal((1, 8192)).astype(np.float32))
        for name, arguments in rows(here):
            if only and not name.startswith(only):
                continue
            if name == "convert PyTorch":
                state(here / "big.pt", blocks)
            told = measured([sys.executable, "-m", "edgerun", *arguments], ROOT, {"PYTHONPATH": str(ROOT)})
            found.append({"verb": name, "seconds": round(told.seconds, 1), "peak_mb": round(told.peak_mb),
                          "anonymous_mb": round(told.anonymous_mb)})  # fmt: skip
            click.echo(json.dumps(found[-1]))
            for done in here.glob("out.onnx*"):
                done.unlink()
    if layers == 12:
        _keep(found, round(layers * 4 * 8192 * 8192 / 1e6))


def _keep(found: list[dict[str, Any]], size: int) -> None:
    """Write the rows to the results, in the place of those of the same verbs."""
    known = {row["verb"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
    known |= {row["verb"]: {**row, "cpu": machine.cpu()} for row in found}
    order = [name for name, _ in rows(Path())]
    kept = sorted(known.values(), key=lambda row: order.index(row["verb"]))
    files.write_bytes(RESULTS, (json.dumps({"weights_mb": size, "rows": kept}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
