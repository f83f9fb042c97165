"""Small PyTorch networks over sequences with random weights: recurrences, dilated convolutions, attention, spectra."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.torch_nets import case


@case("tcn", "signal:float32[batch,4,time]")
class TCN(nn.Module):
    """Bai et al. 2018: dilated causal convolutions with weight normalization and a residual."""

    def __init__(self) -> None:
        super().__init__()
        widths = [4, 8, 8, 16]
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(a, b, 3, dilation=2**i))
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.skips = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, signal: Tensor) -> Tensor:
        x = signal
        for index, (layer, skip) in enumerate(zip(self.convs, self.skips, strict=True)):
            x = torch.relu(layer(F.pad(x, (2 * 2**index, 0)))) + skip(x)
        return x[:, :, -1]


@case("wavenet", "samples:int64[batch,time]")
class WaveNet(nn.Module):
    """van den Oord et al. 2016: gated dilated convolutions over embedded samples, skips summed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.gated = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(4))
        self.mixed = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1))

    def forward(self, samples: Tensor) -> Tensor:
        x, skips = self.embed(samples).transpose(1, 2), torch.zeros(())
        for index, (gated, mixed) in enumerate(zip(self.gated, self.mixed, strict=True)):
            signal, gate = gated(F.pad(x, (2**index, 0))).chunk(2, 1)
            z = mixed(torch.tanh(signal) * torch.sigmoid(gate))
            skips, x = skips + z, x + z
        y: Tensor = self.head(skips)
        return y


@case("lstm_tagger", "words:int64[batch,length]")
class Tagger(nn.Module):
    """Two bidirectional LSTM layers over embedded words, a tag for each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 12)
        self.lstm = nn.LSTM(12, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 7)

    def forward(self, words: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(self.embed(words))[0]).log_softmax(-1)
        return y


@case("gru_encoder", "frames:float32[batch,time,6]")
class GRUEncoder(nn.Module):
    """The encoder of a sequence-to-sequence model: its states and the last one; the first is of the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 8, num_layers=2, batch_first=True)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.zeros(2, frames.shape[0], 8, dtype=frames.dtype)
        states, last = self.gru(frames, first)
        return states, last[-1]


@case("gru_attention", "frames:float32[batch,time,6]", "steps:float32[batch,length,6]")
class Attentive(nn.Module):
    """A GRU decoder whose steps, all known, attend to the encoder's states (Luong et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(6, 8, batch_first=True), nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, frames: Tensor, steps: Tensor) -> Tensor:
        keys, last = self.encoder(frames)
        queries, _ = self.decoder(steps, last)
        weights = torch.bmm(queries, keys.transpose(1, 2)).softmax(-1)
        y: Tensor = self.head(torch.cat([torch.bmm(weights, keys), queries], -1))
        return y


@case("rnn_cells", "frames:float32[batch,5,6]")
class Cells(nn.Module):
    """An LSTMCell in a Python loop over five steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(6, 8)

    def forward(self, frames: Tensor) -> Tensor:
        h = c = torch.zeros(frames.shape[0], 8, dtype=frames.dtype)
        for step in frames.unbind(1):
            h, c = self.cell(step, (h, c))
        return h


@case("speaker_encoder", "mel:float32[batch,time,20]")
class Speaker(nn.Module):
    """x-vectors (Snyder et al. 2018): a time-delay network, statistics pooling, a unit vector."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Conv1d(20, 16, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(16), nn.Conv1d(16, 24, 3, padding=2, dilation=2)
        )
        self.head = nn.Linear(48, 16)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.frames(mel.transpose(1, 2))
        return F.normalize(self.head(torch.cat([x.mean(2), x.std(2)], 1)), dim=1)


@case("transformer_encoder", "x:float32[batch,length,16]", "padding:bool[batch,length]")
class Encoder(nn.Module):
    """nn.TransformerEncoder with sinusoidal positions and a mask over padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        rates = torch.exp(torch.arange(0, 16, 2, dtype=x.dtype) * (-math.log(1e4) / 16))
        positions = torch.stack([torch.sin(steps * rates), torch.cos(steps * rates)], -1).flatten(1)
        kept = padding.logical_and(torch.arange(x.shape[1]) > 0)  # a row of padding alone would be NaN
        y: Tensor = self.encoder(x + positions, src_key_padding_mask=kept)
        return y


@case("transformer", "source:float32[batch,length,16]", "target:float32[batch,steps,16]")
class Seq2Seq(nn.Module):
    """nn.Transformer, post-norm as it was published, with its causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype)
        y: Tensor = self.net(source, target, tgt_mask=mask)
        return y


@case("kv_cache", "token:int64[batch,1]", "past:float32[2,batch,2,seen,8]")
class Cached(nn.Module):
    """One step of a decoder: the keys and values of before go in, one longer they come out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project, self.head = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 50)

    def forward(self, token: Tensor, past: Tensor) -> dict[str, Tensor]:
        x = self.embed(token)
        q, k, v = self.project(x).view(x.shape[0], 1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        now = torch.cat([past, torch.stack([k, v])], 3)
        mixed = F.scaled_dot_product_attention(q, now[0], now[1])
        return {"logits": self.head(x + mixed.transpose(1, 2).flatten(2)), "present": now}


@case("spectrogram", "audio:float32[batch,samples]")
class Spectrogram(nn.Module):
    """A log-mel front end with a short-time Fourier transform, and a small network on it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.register_buffer("mel", torch.rand(9, 5))
        self.window: Tensor
        self.mel: Tensor
        self.head = nn.Conv1d(5, 4, 3, padding=1)

    def forward(self, audio: Tensor) -> Tensor:
        spectrum = torch.stft(audio, 16, 8, window=self.window, center=False, return_complex=True).abs() ** 2
        y: Tensor = self.head(torch.log(self.mel.T @ spectrum + 1e-6)).mean(2)
        return y


@case("selective_scan", "x:float32[batch,time,6]")
class Scan(nn.Module):
    """A gated linear recurrence written as products and cumulative sums."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        decay = -F.softplus(self.gate(x)).cumsum(1)
        ahead = (decay.unsqueeze(2) - decay.unsqueeze(1)).clamp(max=0)
        now, before = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])
        return torch.where((before <= now)[None, :, :, None], ahead.exp(), 0.0).mul(self.value(x)[:, None]).sum(2)


@case("einsum_attention", "x:float32[batch,length,16]")
class Einsum(nn.Module):
    """Attention with ALiBi's slopes (Press et al. 2022), written in einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3, 16, 4, 4) * 0.2)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, 5.0))
        self.slopes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("bld,sdhe->sbhle", x, self.qkv)
        far = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs()
        scores = torch.einsum("bhle,bhme->bhlm", q, k) / 2 - self.slopes[:, None, None] * far
        return torch.einsum("bhlm,bhme->blhe", scores.softmax(-1), v).flatten(2)
