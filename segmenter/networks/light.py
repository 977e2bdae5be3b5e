"""The small face-parsing network that ships with the package."""

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormRelu(nn.Sequential):
    """3x3 (or 1x1) convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Residual(nn.Module):
    """Basic residual block of two 3x3 convolutions (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNormRelu(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))), inplace=True)


class Merge(nn.Module):
    """Decoder step: add the upsampled coarse map to the finer encoder map, then convolve."""

    def __init__(self, coarse: int, fine: int, outputs: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(coarse, outputs, 1)
        self.fine = nn.Conv2d(fine, outputs, 1, bias=False)
        self.conv = ConvNormRelu(outputs, outputs)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        up = F.interpolate(self.coarse(coarse), size=fine.shape[2:], mode="bilinear")
        return self.conv(up + self.fine(fine))


class LightParser(nn.Module):
    """Residual encoder and additive decoder at 1/2 resolution with a sub-pixel head.

    Dense convolutions on few channels: on a CPU they run faster than the depthwise-separable ones
    of mobile networks. The stem and the head are pixel (un)shuffles, so nothing is computed at full
    resolution, yet thin parts are predicted at it.

    Input `(N, 3, H, W)` BGR in [-1, 1], H and W multiples of 2; output logits `(N, 19, H, W)`.
    """

    def __init__(self, classes: int = 19, widths: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), ConvNormRelu(12, a), ConvNormRelu(a, a))
        self.stage4 = nn.Sequential(ConvNormRelu(a, b, stride=2), Residual(b))
        self.stage8 = nn.Sequential(ConvNormRelu(b, c, stride=2), Residual(c), Residual(c))
        self.stage16 = nn.Sequential(ConvNormRelu(c, d, stride=2), Residual(d))
        self.context = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(d, d, 1), nn.ReLU(inplace=True)
        )
        self.merge8 = Merge(d, c, 64)
        self.merge4 = Merge(64, b, 48)
        self.merge2 = Merge(48, a, 32)
        self.head = nn.Sequential(nn.Conv2d(32, 4 * classes, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1])

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of the encoder at 1/4, 1/8 and 1/16, and of the decoder at 1/8, 1/4 and 1/2."""
        x2 = self.stem(x)
        x4 = self.stage4(x2)
        x8 = self.stage8(x4)
        x16 = self.stage16(x8)
        y8 = self.merge8(x16 + self.context(x16), x8)
        y4 = self.merge4(y8, x4)
        return x4, x8, x16, y8, y4, self.merge2(y4, x2)
