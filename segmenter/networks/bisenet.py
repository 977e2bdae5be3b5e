"""BiSeNet on ResNet-18/34, compatible with the public face-parsing weights.

Yu et al. 2018, with the spatial path replaced by the backbone's 1/8 features, as in the two public
face-parsing implementations (zllrunning and yakhyo). Module names are those of the second;
`zllrunning_key` gives the first's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks per stage by depth of the backbone."""


class BiSeNet(nn.Module):
    """Face-parsing BiSeNet: logits at 1/1 from 1/8 features, and two auxiliary maps.

    `classifier` keeps the unused ImageNet classifier that the yakhyo files carry and the
    zllrunning file does not. Input `(N, 3, H, W)` RGB with ImageNet statistics; output three
    tensors `(N, classes, H, W)`, the first being the prediction.
    """

    def __init__(self, depth: int = 18, classes: int = 19, classifier: bool = True) -> None:
        super().__init__()
        self.fpn = _ContextPath(depth, classifier)
        self.ffm = _FeatureFusion(256)
        self.conv_out = _Output(256, 256, classes)
        self.conv_out16 = _Output(128, 64, classes)
        self.conv_out32 = _Output(128, 64, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, context8, context16 = self.fpn(x)
        maps = (
            self.conv_out(self.ffm(fine, context8)),
            self.conv_out16(context8),
            self.conv_out32(context16),
        )
        first, second, third = (
            F.interpolate(m, x.shape[2:], mode="bilinear", align_corners=True) for m in maps
        )
        return first, second, third


def zllrunning_key(key: str) -> str:
    """Return the name that the zllrunning files give to a state-dict key of `BiSeNet`."""
    for ours, theirs in (
        ("fpn.backbone.", "cp.resnet."),
        ("fpn.", "cp."),
        ("ffm.conv_block.", "ffm.convblk."),
        (".attention.0.", ".conv_atten."),
        (".attention.1.", ".bn_atten."),
        (".norm.", ".bn."),
    ):
        key = key.replace(ours, theirs)
    if key.startswith("conv_out") and ".conv_block." not in key:
        key = key.replace(".conv.", ".conv_out.")
    return key.replace(".conv_block.", ".conv.")


class _ConvNormRelu(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(x + shortcut, inplace=True)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [_BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_BasicBlock(inputs, outputs, stride), *rest)


class _ResNet(nn.Module):
    def __init__(self, depth: int, classifier: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        first, second, third, fourth = DEPTHS[depth]
        self.layer1 = _stage(64, 64, first, stride=1)
        self.layer2 = _stage(64, 128, second, stride=2)
        self.layer3 = _stage(128, 256, third, stride=2)
        self.layer4 = _stage(256, 512, fourth, stride=2)
        if classifier:
            self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer1(F.max_pool2d(x, 3, 2, 1))
        x8 = self.layer2(x)
        x16 = self.layer3(x8)
        return x8, x16, self.layer4(x16)


class _AttentionRefinement(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_block = _ConvNormRelu(inputs, outputs)
        self.attention = nn.Sequential(
            nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_block(x)
        return x * self.attention(x.mean((2, 3), keepdim=True))


class _ContextPath(nn.Module):
    def __init__(self, depth: int, classifier: bool) -> None:
        super().__init__()
        self.backbone = _ResNet(depth, classifier)
        self.arm16 = _AttentionRefinement(256, 128)
        self.arm32 = _AttentionRefinement(512, 128)
        self.conv_head32 = _ConvNormRelu(128, 128)
        self.conv_head16 = _ConvNormRelu(128, 128)
        self.conv_avg = _ConvNormRelu(512, 128, kernel=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x8, x16, x32 = self.backbone(x)
        coarse = self.arm32(x32) + self.conv_avg(x32.mean((2, 3), keepdim=True))
        up16 = self.conv_head32(F.interpolate(coarse, x16.shape[2:]))
        up8 = self.conv_head16(F.interpolate(self.arm16(x16) + up16, x8.shape[2:]))
        return x8, up8, up16


class _FeatureFusion(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = _ConvNormRelu(channels, channels, kernel=1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, fine: Tensor, context: Tensor) -> Tensor:
        x = self.conv_block(torch.cat([fine, context], 1))
        attention = self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True))))
        return x + x * attention.sigmoid()


class _Output(nn.Module):
    def __init__(self, inputs: int, middle: int, classes: int) -> None:
        super().__init__()
        self.conv_block = _ConvNormRelu(inputs, middle)
        self.conv = nn.Conv2d(middle, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv_block(x))
