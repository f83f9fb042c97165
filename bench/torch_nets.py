"""Small PyTorch networks with random weights, one for each way of computing that converters meet: no package but torch.

Every one is written as a user would write it, not as an exporter would like it.
"""

from __future__ import annotations

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
        self.wide, self.depth, self.thin = (
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 16, 5, 2, 2, groups=16),
            nn.Conv2d(16, 8, 1),
        )
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
        found = votes.sum(1)
        for step in range(2):
            found = self.squash((logits.softmax(2).unsqueeze(-1) * votes).sum(1))
            if step < 1:
                logits = logits + (votes * found.unsqueeze(1)).sum(-1)
        result: Tensor = found.norm(dim=-1)
        return result


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
        result: Tensor = (best.softmax(1).unsqueeze(2) * chosen).sum(1)
        return result
