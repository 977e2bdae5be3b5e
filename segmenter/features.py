"""What a face parser has found out about a picture by the time it names classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmenter.networks.light import LightParser
from segmenter.parser import load_parser, network_input


class ParserFeatures(nn.Module):
    """All feature maps of the light parser at 1/16 of its resolution, with weights that stay.

    They tell what covers a face from the face far better than the classes that are made of them.

    Args:
        name: of a parser that ships with the package, or a file of its kind.

    Attributes:
        channels: of the result.

    Raises:
        FileNotFoundError, ValueError: see `load_parser`; or a parser of another kind.
    """

    def __init__(self, name: str = "light"):
        super().__init__()
        parser = load_parser(name, "cpu")
        if not isinstance(parser.network, LightParser):
            raise ValueError(f"{name} is no light parser: only of those the features can be had")
        self.network, self.size = parser.network, parser.size
        with torch.no_grad():
            self.channels = self(torch.zeros((1, 3, 8, 8), dtype=torch.uint8)).shape[1]

    def train(self, mode: bool = True) -> "ParserFeatures":
        """Stays as it is for inference."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features `(N, C, h, w)` of uint8 BGR images `(N, 3, H, W)` of any size."""
        maps = self.network.features(network_input(images, self.size, 127.5, 127.5))
        side = self.size // 16
        return torch.cat([F.avg_pool2d(part, part.shape[3] // side) for part in maps], 1)
