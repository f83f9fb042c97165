"""Small PyTorch networks with random weights, one for each way of computing that converters meet: no package but torch.

Every one is written as a user would write it, not as an exporter would like it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = "image:float32[batch,3,height,width]"
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {}


def case(name: str, *inputs: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a network under `name` with its input specs, in call order."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES[name] = (build, inputs)
        return build

    return register


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Conv, BatchNorm, SiLU; the size stays at stride 1."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


@case("unet", IMAGE)
class UNet(nn.Module):
    """Ronneberger et al. 2015: skip connections by concatenation; the way up by size, for any size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 8), conv(8, 16), conv(16, 32)])
        self.up = nn.ModuleList([conv(32 + 16, 16), conv(16 + 8, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        skips: list[Tensor] = []
        x = image
        for index, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if index else x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        y: Tensor = self.head(x)
        return y


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


@case("yolo_head", "image:float32[batch,3,height,width]")
class Detector(nn.Module):
    """A YOLOv8-like head on three strides: boxes as distances by an expectation over bins, decoded to xywh."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, stride=2)
        self.stages = nn.ModuleList([conv(8, 16, stride=2), conv(16, 32, stride=2), conv(32, 32, stride=2)])
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4 * 8, 1) for c in (16, 32, 32))
        self.classes = nn.ModuleList(nn.Conv2d(c, 5, 1) for c in (16, 32, 32))
        self.register_buffer("bins", torch.arange(8.0))
        self.bins: Tensor

    def forward(self, image: Tensor) -> Tensor:
        x, found = self.stem(image), []
        for level, (stage, boxes, classes) in enumerate(zip(self.stages, self.boxes, self.classes, strict=True)):
            x, stride = stage(x), 4 * 2**level
            height, width = x.shape[2:]
            ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            anchors = torch.stack([xs, ys]).reshape(2, -1).to(x.dtype)
            sides = boxes(x).reshape(x.shape[0], 4, 8, -1).softmax(2).mul(self.bins[:, None]).sum(2)
            low, high = anchors - sides[:, :2], anchors + sides[:, 2:]
            scores = classes(x).flatten(2).sigmoid()
            found.append(torch.cat([(low + high) / 2 * stride, (high - low) * stride, scores], 1))
        return torch.cat(found, 2)


@case("autoencoder", IMAGE)
class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ELU())
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 2, 2), nn.PReLU(8), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Sigmoid()
        )

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.encoder(image))
        return y


@case("vae", "pixels:float32[batch,64]")
class VAE(nn.Module):
    """Kingma and Welling 2014, as it is deployed: the mean stands for the draw."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.log_variance = nn.Linear(64, 32), nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.Softplus(), nn.Linear(32, 64), nn.Sigmoid())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.encoder(pixels))
        mean, spread = self.mean(hidden), torch.exp(0.5 * self.log_variance(hidden))
        z = mean + torch.randn_like(spread) * spread if self.training else mean
        return {"pixels_again": self.decoder(z), "mean": mean, "spread": spread}


@case("mlp_mixer", "image:float32[batch,3,32,32]")
class Mixer(nn.Module):
    """Tolstikhin et al. 2021: products over patches and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.tokens = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)
        )  # fmt: skip
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU("tanh"), nn.Linear(32, 16)) for _ in range(2)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).mT
        for index, (tokens, channels) in enumerate(zip(self.tokens, self.channels, strict=True)):
            x = x + tokens(self.norms[2 * index](x).mT).mT
            x = x + channels(self.norms[2 * index + 1](x))
        y: Tensor = self.head(x.mean(1))
        return y


@case("squeeze_excite", IMAGE)
class SqueezeExcite(nn.Module):
    """MobileNetV3's block: depthwise convolution, a gate per channel, hard activations."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depth, self.thin = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 5, 2, 2, groups=16), nn.Conv2d(16, 8, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid()
        )
        self.act = nn.Hardswish()

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.depth(self.act(self.wide(image))))
        y: Tensor = self.thin(x * self.gate(x))
        return y


@case("capsules", "image:float32[batch,1,20,20]")
class Capsules(nn.Module):
    """Sabour et al. 2017: primary capsules, two rounds of routing by agreement; lengths of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.primary = nn.Conv2d(1, 8, 5), nn.Conv2d(8, 16, 5, 2)
        self.weight = nn.Parameter(torch.randn(1, 4 * 36, 5, 6, 4) * 0.1)

    @staticmethod
    def squash(v: Tensor) -> Tensor:
        square = (v * v).sum(-1, keepdim=True)
        return square / (1 + square) * v / torch.sqrt(square + 1e-8)

    def forward(self, image: Tensor) -> Tensor:
        x = self.primary(F.relu(self.first(image)))
        capsules = self.squash(x.view(x.size(0), -1, 4))
        votes = (self.weight @ capsules[:, :, None, :, None]).squeeze(-1)
        logits = torch.zeros(x.size(0), 4 * 36, 5, dtype=x.dtype)
        for step in range(2):
            found = self.squash((logits.softmax(2).unsqueeze(-1) * votes).sum(1))
            if step < 1:
                logits = logits + (votes * found.unsqueeze(1)).sum(-1)
        return found.norm(dim=-1)


@case("pixel_shuffle", IMAGE)
class SuperResolution(nn.Module):
    """ESPCN (Shi et al. 2016) on top of a bicubic enlargement."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2, padding_mode="reflect"), nn.Tanh())
        self.last = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        large = F.interpolate(image, scale_factor=2, mode="bicubic")
        return (F.pixel_shuffle(self.last(self.body(image)), 2) + large).clamp(0, 1)


@case("spatial_transformer", "image:float32[batch,1,24,24]")
class SpatialTransformer(nn.Module):
    """Jaderberg et al. 2015: an affine grid that the picture itself asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.Conv2d(1, 4, 7, 4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 6))

    def forward(self, image: Tensor) -> Tensor:
        theta = self.where(image).view(-1, 2, 3) * 0.2 + torch.eye(2, 3, dtype=image.dtype)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, align_corners=False)


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


@case("instance_norm", IMAGE)
class Style(nn.Module):
    """A style network: reflection padding, instance and group normalization, nearest enlargement."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU(0.1),
            nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Mish(), nn.Upsample(scale_factor=2),
            nn.ReplicationPad2d(1), nn.Conv2d(8, 3, 3),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.body(image)
        return y


@case("video3d", "clip:float32[batch,3,8,16,16]")
class Video(nn.Module):
    """Three-dimensional convolutions and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 8, (1, 3, 3)),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip

    def forward(self, clip: Tensor) -> Tensor:
        y: Tensor = self.body(clip)
        return y


@case("deep_sets", "points:float32[batch,points,3]")
class PointNet(nn.Module):
    """Qi et al. 2017: one network for every point, the largest of each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 32))
        self.all = nn.Sequential(nn.Linear(32, 16), nn.CELU(), nn.Linear(16, 4))

    def forward(self, points: Tensor) -> Tensor:
        centred = points - points.mean(1, keepdim=True)
        y: Tensor = self.all(self.each(centred).max(1).values)
        return y


@case("recommender", "dense:float32[batch,4]", "sparse:int64[batch,3]")
class Recommender(nn.Module):
    """DLRM (Naumov et al. 2019): an EmbeddingBag per field, products of all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(20, 8, mode="sum") for _ in range(3))
        self.bottom, self.top = nn.Linear(4, 8), nn.Linear(8 + 6, 1)
        self.register_buffer("pairs", torch.tril_indices(4, 4, -1))
        self.pairs: Tensor

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = torch.relu(self.bottom(dense))
        rows = torch.stack([x, *(table(sparse[:, i : i + 1]) for i, table in enumerate(self.tables))], 1)
        products = (rows @ rows.mT)[:, self.pairs[0], self.pairs[1]]
        y: Tensor = self.top(torch.cat([x, products], 1)).sigmoid()
        return y


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


@case("mixture_of_experts", "x:float32[batch,8]")
class Experts(nn.Module):
    """A gate picks two of four experts by topk; all are computed, as small mixtures are."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 4), nn.ModuleList(nn.Linear(8, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        best, where = self.gate(x).topk(2, dim=1)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        chosen = every.gather(1, where.unsqueeze(2).expand(-1, -1, 6))
        return (best.softmax(1).unsqueeze(2) * chosen).sum(1)


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
