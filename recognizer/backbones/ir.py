"""Improved residual networks (IR, IR-SE) as AdaFace publishes them.

Deng et al., "ArcFace" (arXiv 1801.07698) give the block; the layer names, the max-pooling shortcut
and the output without affine normalisation follow the AdaFace checkpoints (arXiv 2204.00964).
`recognizer.backbones.iresnet` is a different network, not this one renamed.
"""

import torch
from torch import Tensor, nn

# Blocks of 64, 128, 256 and 512 channels; the first block of every stage halves the resolution.
STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    101: (3, 13, 30, 3),
}
WIDTHS = (64, 128, 256, 512)


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al., arXiv 1709.01507): `(N, C, H, W)` to the same shape."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel by a gate computed from the channel means."""
        gate = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Block(nn.Module):
    """BN-conv-BN-PReLU-conv-BN plus a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool):
        super().__init__()
        self.shortcut_layer: nn.Module
        if inputs == outputs:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if squeeze:
            self.res_layer.add_module("se_block", SqueezeExcitation(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        return self.shortcut_layer(x) + self.res_layer(x)


class IR(nn.Module):
    """IR-18/34/50/101 or IR-SE: 112x112 BGR, (x/255 - 0.5)/0.5, to a 512-D embedding.

    Args:
        depth: 18, 34, 50 or 101.
        squeeze: Add squeeze-and-excitation to every block (IR-SE).
    """

    def __init__(self, depth: int, squeeze: bool = False):
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512, affine=False),
        )
        blocks: list[nn.Module] = []
        inputs = 64
        for width, count in zip(WIDTHS, STAGES[depth], strict=True):
            for index in range(count):
                blocks.append(Block(inputs, width, 2 if index == 0 else 1, squeeze))
                inputs = width
        self.body = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed normalised images.

        Args:
            x: `(N, 3, 112, 112)` float.

        Returns:
            Unit embedding `(N, 512)` and the norm it had `(N, 1)`.
        """
        feature = self.output_layer(self.body(self.input_layer(x)))
        norm = feature.norm(dim=1, keepdim=True)
        return feature / norm, norm
