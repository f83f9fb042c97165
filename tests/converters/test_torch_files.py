"""PyTorch's files that bring weights without a program: safetensors, Hugging Face folders; TorchScript with a state."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch  # noqa: E402
from torch import nn  # noqa: E402

import edgerun  # noqa: E402
from edgerun import registry  # noqa: E402
from edgerun.converters import _torch_files, _torch_folders  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.postprocess import Postprocessing  # noqa: E402
from edgerun.runtime import TensorSpec  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402


def _read(path: Path, inputs: Sequence[str] = (), factory: str | None = None) -> Model:
    """The converter alone, in this process."""
    specs = [TensorSpec.parse(text) for text in inputs]
    return registry.converter("pytorch").convert(path, inputs=specs, factory=factory, opset=21).model


def _safetensors(path: Path, tensors: dict[str, Any], **damage: Any) -> None:
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes()
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}[tensor.dtype]
        entry = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        header[name], data = {**entry, **damage}, data + raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_checkpoint_is_known_by_its_tensors(tmp_path: Path) -> None:
    """Whatever a training script calls its weights; two such entries are a question."""
    weights = nn.Linear(4, 3).state_dict()
    kept: dict[str, Any] = {"step": 7, "model_state": weights, "optimizer_state": {"state": {}, "param_groups": [{}]}}
    torch.save(kept, tmp_path / "one.pt")
    assert _torch_files.state_dict(tmp_path / "one.pt").keys() == weights.keys()
    torch.save({**kept, "averaged": weights}, tmp_path / "two.pt")
    with pytest.raises(EdgerunError, match="several state_dicts(.|\\n)*step, model_state, optimizer_state, averaged"):
        _torch_files.state_dict(tmp_path / "two.pt")
    torch.save({"step": 7}, tmp_path / "none.pt")
    with pytest.raises(EdgerunError, match="the file holds no state_dict(.|\\n)*a dict of step"):
        _torch_files.state_dict(tmp_path / "none.pt")


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors to the bit, and a network with them; without a factory they are no network."""
    code = "from torch import nn\n\ndef small():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())\n"
    (tmp_path / "small_nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    tensors = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).state_dict()
    _safetensors(tmp_path / "small.safetensors", tensors)
    found = _torch_folders.tensors(tmp_path / "small.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], t) for name, t in tensors.items())
    odd = {"half": torch.randn(3, 2).bfloat16(), "empty": torch.zeros(0, 4), "count": torch.tensor(7)}
    _safetensors(tmp_path / "odd.safetensors", odd)
    found = _torch_folders.tensors(tmp_path / "odd.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in odd.items())
    model = _read(tmp_path / "small.safetensors", ["x:float32[batch,4]"], "small_nets:small")
    assert model.outputs[0].shape == ("batch", 3)
    with pytest.raises(EdgerunError, match="holds tensors, not the network"):
        _read(tmp_path / "small.safetensors", ["x:float32[batch,4]"])


@pytest.mark.parametrize(
    "damage", [{"shape": [5]}, {"data_offsets": [0, 10**9]}, {"data_offsets": [8, 4]}, {"dtype": "F99"},
               {"shape": [-1, 4]}, {"more": 1}],
)  # fmt: skip
def test_damaged_safetensors(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "net.safetensors"
    _safetensors(path, {"w": torch.randn(3, 4)}, **damage)
    with pytest.raises(EdgerunError, match="truncated or damaged"):
        _torch_folders.tensors(path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(EdgerunError, match="truncated or damaged"):
        _torch_folders.tensors(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of a tiny BERT."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                     vocab_size=64, max_position_embeddings=64)  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).eval().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_hugging_face_folder_tells_its_inputs(folder: Path) -> None:
    found = convert(folder)
    assert [str(spec) for spec in found.inputs] == [
        f"{name}:int64[batch,length]" for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert Parity.of(found).passed and found.outputs[0].shape == ("batch", "length", 16)
    assert found.preprocessing is None and found.postprocessing is None, "no picture goes in, and no class comes out"


def test_a_hugging_face_folder_tells_its_pictures_and_classes(tmp_path: Path) -> None:
    """As the files given by hand do; one that is not understood is left out, and what is given goes before both."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                    image_size=32, patch_size=16, id2label={0: "cat", 1: "dog"})  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).eval().save_pretrained(tmp_path / "vit")
    processor = tmp_path / "vit" / "preprocessor_config.json"
    processor.write_text('{"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}')
    found = convert(tmp_path / "vit")
    by_hand = convert(tmp_path / "vit", preprocessing=processor, postprocessing=tmp_path / "vit" / "config.json")
    assert found.preprocessing == by_hand.preprocessing and found.preprocessing is not None
    assert found.postprocessing == by_hand.postprocessing and found.postprocessing is not None
    assert found.postprocessing["labels"] == ["cat", "dog"]
    pictures = [np.full((40, 50, 3), level, np.uint8) for level in (0, 255)]
    said = edgerun.predict(found.to_bytes(), pictures)
    assert {said[name].labels[0] for name in said} <= {"cat", "dog"} and len(said) == 2

    processor.write_text('{"image_processor_type": "StrangeImageProcessor"}')
    other = convert(
        tmp_path / "vit", postprocessing=Postprocessing.from_json({"kind": "classes", "labels": ["a", "b"]})
    )
    assert other.preprocessing is None and other.postprocessing is not None
    assert other.postprocessing["labels"] == ["a", "b"]


def test_a_folder_asks_for_nothing_but_its_weights(folder: Path) -> None:
    """Code that it names is left alone; what is missing, or quantized by others, is refused."""
    config = json.loads((folder / "config.json").read_text())
    told = {**config, "auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation": "stranger/kernels"}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")
    assert _torch_folders.model(folder).training is False and not (folder / "canary").exists()
    for change, message in (({"quantization_config": {"quant_method": "awq"}}, "quantized by another tool"),
                            ({"architectures": ["Pipeline"]}, "does not know the model"),
                            ({"num_hidden_layers": 2}, "lacks weights")):  # fmt: skip
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(EdgerunError, match=message):
            _torch_folders.model(folder)


def test_a_folder_without_transformers_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text("{}")
    _safetensors(tmp_path / "model.safetensors", {"w": torch.randn(2)})
    with pytest.raises(Unsupported, match="(?s)not installed.*pip install transformers.*--factory"):
        _torch_folders.model(tmp_path)


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(1)
        self.part = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + x.sum()
        y: torch.Tensor = self.part(x) + self.seen
        return y


def test_torchscript_with_a_state_is_refused_by_name(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(_Counting().eval()), tmp_path / "net.jit")
    with pytest.raises(Unsupported, match="(?s)keeps a state.*forward writes seen.*module.part"):
        _read(tmp_path / "net.jit", ["x:float32[batch,4]"])


class _Picky(nn.Module):
    def forward(self, x: torch.Tensor, rate: int) -> torch.Tensor:
        if rate != 16000:
            raise ValueError("supported rates: 16000")
        return x * 2


def test_torchscript_says_the_sources_own_words(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(_Picky().eval()), tmp_path / "net.jit")
    with pytest.raises(EdgerunError, match="got: .*supported rates: 16000"):
        _read(tmp_path / "net.jit", ["x:float32[batch,4]", "rate:int64[]"])
