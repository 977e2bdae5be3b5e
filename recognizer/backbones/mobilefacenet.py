"""MobileFaceNet (Chen et al., arXiv 1804.07573) as InsightFace's arcface_torch publishes it.

The published network is twice as wide as the paper's and its second layer is a grouped, not a
depthwise, convolution (64 groups of two channels).
"""

from torch import Tensor, nn

# (layer, output channels, expansion channels, blocks). "down" halves the resolution once.
LAYERS = (
    ("down", 128, 128, 1),
    ("residual", 128, 128, 4),
    ("down", 256, 256, 1),
    ("residual", 256, 256, 6),
    ("down", 256, 512, 1),
    ("residual", 256, 256, 2),
)


class Conv(nn.Module):
    """Convolution without bias, batch normalisation and, unless `linear`, PReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if not linear:
            self.layers.append(nn.PReLU(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        return self.layers(x)


class Bottleneck(nn.Module):
    """Expand (1x1), depthwise 3x3, project (1x1, linear); with a shortcut when `residual`."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, residual: bool):
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            Conv(inputs, expansion),
            Conv(expansion, expansion, 3, stride, 1, groups=expansion),
            Conv(expansion, outputs, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        return x + self.layers(x) if self.residual else self.layers(x)


class ResidualStage(nn.Module):
    """A run of residual bottlenecks of one width."""

    def __init__(self, channels: int, expansion: int, count: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(Bottleneck(channels, channels, expansion, 1, True) for _ in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` to the same shape."""
        return self.layers(x)


class GlobalDepthwise(nn.Module):
    """Global depthwise convolution and a linear layer: `(N, 512, 7, 7)` to `(N, 512)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv(512, 512, kernel=7, groups=512, linear=True),
            nn.Flatten(),
            nn.Linear(512, 512, bias=False),
            nn.BatchNorm1d(512),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 512, 7, 7)` to `(N, 512)`."""
        return self.layers(x)


class MobileFaceNet(nn.Module):
    """MobileFaceNet: 112x112 RGB, (x/255 - 0.5)/0.5, to a 512-D feature."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Conv(3, 128, 3, 2, 1), Conv(128, 128, 3, 1, 1, groups=64)])
        inputs = 128
        for kind, width, expansion, count in LAYERS:
            if kind == "down":
                self.layers.append(Bottleneck(inputs, width, expansion, 2, False))
            else:
                self.layers.append(ResidualStage(width, expansion, count))
            inputs = width
        self.conv_sep = Conv(256, 512)
        self.features = GlobalDepthwise()
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 3, 112, 112)` float to `(N, 512)`, not normalised to unit length."""
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))
