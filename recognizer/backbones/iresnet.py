"""Improved residual networks as InsightFace's arcface_torch publishes them (arXiv 1801.07698)."""

from torch import Tensor, nn

# Blocks of 64, 128, 256 and 512 channels; the first block of every stage halves the resolution.
STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
}
WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """BN-conv-BN-PReLU-conv-BN plus a shortcut, convolutional in the first block of a stage."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        out = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return out + (x if self.downsample is None else self.downsample(x))


def _stage(inputs: int, outputs: int, count: int) -> nn.Sequential:
    rest = (Block(outputs, outputs, 1) for _ in range(count - 1))
    return nn.Sequential(Block(inputs, outputs, 2), *rest)


class IResNet(nn.Module):
    """iresnet18/34/50/100: 112x112 RGB, (x/255 - 0.5)/0.5, to a 512-D feature.

    Args:
        depth: 18, 34, 50 or 100.
    """

    def __init__(self, depth: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        inputs = (64, *WIDTHS)
        for stage, (width, count) in enumerate(zip(WIDTHS, STAGES[depth], strict=True)):
            self.add_module(f"layer{stage + 1}", _stage(inputs[stage], width, count))
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)
        # The scale of the last normalisation is redundant with the margin head's and stays 1.
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 3, 112, 112)` float to `(N, 512)`, not normalised to unit length."""
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))
