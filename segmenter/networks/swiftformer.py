"""SwiftFormer-L1 U-Net, compatible with the parser of the published SARFace code.

SwiftFormer (Shaker et al. 2023) as encoder, the same stages in reverse with sub-pixel upsampling
as decoder. Module names follow the published code.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS = (4, 3, 10, 5)
WIDTHS = (48, 96, 192, 384)


class SwiftFormerUNet(nn.Module):
    """Encoder-decoder of SwiftFormer stages; input `(N, 3, H, W)`, H and W multiples of 32.

    Output logits `(N, classes, H, W)`.
    """

    def __init__(
        self,
        classes: int = 19,
        depths: tuple[int, ...] = DEPTHS,
        widths: tuple[int, ...] = WIDTHS,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(depths, widths)
        self.decoder = _Decoder(depths, widths, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class _ConvBlock(nn.Module):
    """Depthwise convolution and a two-layer pointwise perceptron, residual with layer scale."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.pwconv1 = nn.Conv2d(width, hidden, 1)
        self.pwconv2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x)))))
        return x + self.layer_scale * y


class _AdditiveAttention(nn.Module):
    """Efficient additive attention: one global query instead of all pairs of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w_g = nn.Parameter(torch.randn(width, 1))
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.Proj = nn.Linear(width, width)
        self.final = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query = F.normalize(self.to_query(tokens), dim=-1)
        key = F.normalize(self.to_key(tokens), dim=-1)
        weight = F.normalize(query @ self.w_g * key.shape[-1] ** -0.5, dim=1)
        overall = (weight * query).sum(1, keepdim=True)
        return self.final(self.Proj(overall * key) + query)


class _Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm1(x))))


class _AttentionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((width, 1, 1), 1e-5))
        self.layer_scale_2 = nn.Parameter(torch.full((width, 1, 1), 1e-5))
        self.local_representation = _ConvBlock(width, width)
        self.attn = _AdditiveAttention(width)
        self.linear = _Perceptron(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_representation(x)
        attended = self.attn(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape)
        x = x + self.layer_scale_1 * attended
        return x + self.layer_scale_2 * self.linear(x)


def _stage(width: int, depth: int) -> nn.Sequential:
    blocks: list[nn.Module] = [_ConvBlock(width, 4 * width) for _ in range(depth - 1)]
    return nn.Sequential(*blocks, _AttentionBlock(width))


class _Downsample(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class _Encoder(nn.Module):
    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        half = widths[0] // 2
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, half, 3, 2, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, widths[0], 3, 2, 1),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.network = nn.ModuleList()
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if index:
                self.network.append(_Downsample(widths[index - 1], width))
            self.network.append(_stage(width, depth))
        for index, width in enumerate(widths):
            self.add_module(f"norm{2 * index}", nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        features = []
        for index, block in enumerate(self.network):
            x = block(x)
            if index % 2 == 0:
                features.append(self.get_submodule(f"norm{index}")(x))
        return features


class _Decoder(nn.Module):
    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.network = nn.ModuleList()
        for index in reversed(range(len(widths))):
            self.network.append(_stage(widths[index], depths[index]))
            outputs, factor = (widths[index - 1], 2) if index else (classes, 4)
            self.network.append(
                nn.Sequential(
                    nn.Conv2d(widths[index], outputs * factor**2, 3, padding=1),
                    nn.PixelShuffle(factor),
                )
            )
        self.concat_layers = nn.ModuleList(nn.Conv2d(2 * w, w, 1) for w in widths[:-1])

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for index, block in enumerate(self.network):
            x = block(x)
            level = len(features) - 2 - index // 2
            if index % 2 and level >= 0:
                x = self.concat_layers[level](torch.cat([x, features[level]], 1))
        return x
