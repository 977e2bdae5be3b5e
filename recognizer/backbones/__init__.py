"""Backbones by name: the networks that turn a normalised face into a feature vector.

A backbone takes float images already scaled, in the channel order it was trained with,
`(N, 3, S, S)`, and returns a raw feature `(N, D)`, or, for the AdaFace family, the unit embedding
`(N, D)` and its norm `(N, 1)`. `recognizer.recognizer.Recognizer` hides the difference.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from recognizer.backbones.ir import IR
from recognizer.backbones.iresnet import IResNet
from recognizer.backbones.mobilefacenet import MobileFaceNet
from recognizer.backbones.resnet29 import ResNet29
from recognizer.backbones.tiny import TinyIR

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "ir_18": partial(IR, 18),
    "ir_34": partial(IR, 34),
    "ir_50": partial(IR, 50),
    "ir_101": partial(IR, 101),
    "ir_se_50": partial(IR, 50, squeeze=True),
    "iresnet18": partial(IResNet, 18),
    "iresnet34": partial(IResNet, 34),
    "iresnet50": partial(IResNet, 50),
    "iresnet100": partial(IResNet, 100),
    "mobilefacenet": MobileFaceNet,
    "resnet29": ResNet29,
    "ir_tiny": TinyIR,
}


def build_backbone(name: str) -> nn.Module:
    """Build a backbone with fresh weights.

    Args:
        name: A key of `BACKBONES`.

    Raises:
        ValueError: Unknown name; the message lists the known ones.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; choose from {', '.join(BACKBONES)}")
    return BACKBONES[name]()
