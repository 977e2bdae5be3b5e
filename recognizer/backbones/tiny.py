"""The small network of the embedded face world, made to be fast on a laptop's CPU."""

from torch import Tensor, nn


def _conv_bn(i: int, o: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(o)
    )


class _Block(nn.Module):
    """Residual block with every BatchNorm behind a convolution, so that all of them fold away."""

    def __init__(self, i: int, o: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(_conv_bn(i, o, 3, stride), nn.PReLU(o), _conv_bn(o, o, 3))
        self.shortcut = nn.Identity() if stride == 1 and i == o else _conv_bn(i, o, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class TinyIR(nn.Module):
    """An IR network cut down to 0.8 M parameters: `(N, 3, 112, 112)` to raw features `(N, 128)`.

    The stem reduces four times at once, which is where most of the time of IR-18 goes. The output
    layer (BatchNorm, flatten, linear, BatchNorm) is that of ArcFace's "E" setting
    (arXiv 1801.07698), in which the position of a feature on the face is kept.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 48, 96), dim: int = 128):
        super().__init__()
        stem, *stages = widths
        layers: list[nn.Module] = [
            nn.Conv2d(3, stem, 7, 4, 3, bias=False),
            nn.BatchNorm2d(stem),
            nn.PReLU(stem),
        ]
        for i, o in zip(widths, stages, strict=False):
            layers.append(_Block(i, o, 2))
        self.body = nn.Sequential(*layers)
        side = 28 // 2 ** len(stages)
        self.output = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, dim),
            nn.BatchNorm1d(dim, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Raw features of normalised images."""
        return self.output(self.body(x))
