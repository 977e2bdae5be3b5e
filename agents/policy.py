"""The policy network: keep logits of the selectable regions, from the region map and the image."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from segmenter.features import ParserFeatures


@dataclass(frozen=True)
class Layout:
    """What a policy has to know of an environment.

    Attributes:
        shape: of one observation.
        bits: length of the action, K.
        regions: number of regions in the map, R; 0 when observations are not region maps.
        selectable: region of every bit; empty when observations are not region maps.
        partition: its name, if the environment has one.
        families: what the region of every bit is a piece of; empty if the partition does not say.
    """

    shape: tuple[int, ...]
    bits: int
    regions: int = 0
    selectable: tuple[int, ...] = ()
    partition: str = ""
    families: tuple[str, ...] = ()

    @classmethod
    def of(cls, env) -> "Layout":
        """The layout of a Gymnasium environment, single or vector, with `MultiBinary` actions.

        Raises:
            TypeError: the action space is not `MultiBinary`.
        """
        inner = env.unwrapped
        observation = getattr(inner, "single_observation_space", inner.observation_space)
        action = getattr(inner, "single_action_space", inner.action_space)
        if not isinstance(action, spaces.MultiBinary) or not isinstance(action.n, int):
            raise TypeError(f"agents choose keep bits: MultiBinary(K) is needed, got {action}")
        shape = tuple(observation.shape)
        partition = getattr(inner, "partition", None)
        name = getattr(partition, "name", "")
        if partition is None or len(shape) != 3 or shape[0] not in (1, 4, 5):
            return cls(shape, action.n, partition=name)
        selectable, families = tuple(partition.selectable), getattr(partition, "families", ())
        return cls(shape, action.n, len(partition.names), selectable, name, tuple(families))


_CLASSES = 19  # of a parsing map


class _Wider(nn.Sequential):
    """A residual layer whose taps lie some pixels apart."""

    def __init__(self, channels: int, apart: int):
        super().__init__(nn.Conv2d(channels, channels, 3, 1, apart, dilation=apart), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class RegionPolicy(nn.Module):
    """Judges every region from the features inside it, in the context of the whole face.

    A small convolutional encoder sees learned codes of every pixel's region and, when observed, of
    its parsing class, and the image. Its features, and mean and spread of the colours, are averaged
    over every region; one network, shared by all regions, turns a region's averages, its area, a
    learned code of which region it is and the mean over the face into a logit. Sharing is what
    makes it learn from few faces: a patch on the left cheek teaches about one on the right.
    With a trunk, the encoder is that of a face parser and a few layers on its features.

    Args:
        layout: of the environment.
        width: channels of the first layer.
        keep: probability with which every region is kept before training.
        depth: residual layers at the end of the encoder, each seeing twice as far as the last.
        trunk: name or file of the parser, see `ParserFeatures`.

    Raises:
        ValueError: the observations have no image for the trunk.
    """

    def __init__(
        self,
        layout: Layout,
        width: int = 24,
        keep: float = 0.7,
        depth: int = 0,
        trunk: str = "",
    ):
        super().__init__()
        self.layout = layout
        if trunk and layout.shape[0] == 1:
            raise ValueError("the features of a parser need an image to observe: regions+image")
        self.trunk = ParserFeatures(trunk) if trunk else None
        side = min(layout.shape[1:])
        # The first layer brings faces of 112 pixels to 28: finer costs more than the recognizer.
        self.stride = 4 if side >= 64 else 2 if side >= 32 else 1
        # Observations are a region map, perhaps a parsing map, and perhaps three colours.
        colours = 3 if layout.shape[0] > 1 else 0
        own = self.trunk is None
        self.region = nn.Embedding(layout.regions, width) if own else None
        self.parsing = nn.Embedding(_CLASSES, width) if own and layout.shape[0] == 5 else None
        self.image = (
            nn.Conv2d(colours, width, 2 * self.stride - 1, self.stride, self.stride - 1)
            if own and colours
            else None
        )
        first = (
            [nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1)]
            if self.trunk is None
            else [nn.Conv2d(self.trunk.channels, 2 * width, 1)]
        )
        self.encoder = nn.Sequential(
            *first,
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
            nn.ReLU(),
            *(_Wider(2 * width, 2**level) for level in range(depth)),
        )
        self.code = nn.Parameter(torch.zeros(layout.bits, 2 * width))
        self.decide = nn.Sequential(
            nn.Linear(4 * width + 1 + 4 * colours, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 2 * width),
        )
        self.out = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, torch.logit(torch.tensor(keep)).item())
        self.register_buffer("selectable", torch.tensor(layout.selectable, dtype=torch.uint8))
        self.selectable: Tensor

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape of one face's features: bits, and what is known of each."""
        return self.layout.bits, self.out.in_features

    def forward(self, obs: Tensor, seen: Tensor | None = None) -> Tensor:
        """Keep logits `(N, K)` of observations `(N, C, H, W)` uint8.

        `seen` is `trunk` of their images, if that is known already.
        """
        return self.head(self.features(obs, seen))

    def head(self, features: Tensor) -> Tensor:
        """Keep logits `(N, K)` of `features(obs)`."""
        return self.out(features).squeeze(2)

    def features(self, obs: Tensor, seen: Tensor | None = None) -> Tensor:
        """What is known of every selectable region, `(N, K, D)`."""
        regions = obs[:, 0, :: self.stride, :: self.stride]
        share = (regions[:, None] == self.selectable[:, None, None]).float()
        area = share.mean((2, 3))[:, :, None]
        parts = [area]
        if obs.shape[1] > 1:
            image = obs[:, -3:].contiguous(memory_format=torch.channels_last).float()
            image = image.div_(128).sub_(1)
            parts.append(_colours(share, image[:, :, :: self.stride, :: self.stride]))
        if self.trunk is not None:
            x = self.trunk(obs[:, -3:]) if seen is None else seen
        else:
            assert self.region is not None
            x = self.region(regions.int()).permute(0, 3, 1, 2)
            if self.parsing is not None:
                classes = obs[:, 1, :: self.stride, :: self.stride]
                x = x + self.parsing(classes.int()).permute(0, 3, 1, 2)
            if self.image is not None:
                x = x + self.image(image)
        features = self.encoder(x)
        share = F.adaptive_avg_pool2d(share, features.shape[2:])
        whole = features.mean((2, 3))[:, None].expand(-1, share.shape[1], -1)
        parts += [_averages(share, features), whole]
        return F.relu(self.decide(torch.cat(parts, 2)) + self.code)


def _averages(share: Tensor, features: Tensor) -> Tensor:
    """Means `(N, K, C)` of features `(N, C, h, w)` over regions that own shares `(N, K, h, w)`."""
    total = share.flatten(2) @ features.flatten(2).transpose(1, 2)
    return total / share.sum((2, 3))[:, :, None].clamp_min(1e-6)


def _colours(share: Tensor, image: Tensor) -> Tensor:
    """Mean colours of regions and their standard deviations, and both less the mean region's."""
    mean = _averages(share, image)
    spread = (_averages(share, image.square()) - mean.square()).clamp_min(1e-6).sqrt()
    values = torch.cat([mean, spread], 2)
    return torch.cat([values, values - values.mean(1, keepdim=True)], 2)


class FlatPolicy(nn.Module):
    """A perceptron on the flattened observation, for environments without region maps."""

    def __init__(self, layout: Layout, width: int = 64, keep: float = 0.5):
        super().__init__()
        self.layout = layout
        size = math.prod(layout.shape)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.Tanh())
        self.out = nn.Linear(width, layout.bits)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, torch.logit(torch.tensor(keep)).item())

    @property
    def feature_shape(self) -> tuple[int]:
        """Shape of one observation's features."""
        return (self.out.in_features,)

    def forward(self, obs: Tensor) -> Tensor:
        """Keep logits `(N, K)` of observations `(N, ...)`."""
        return self.head(self.features(obs))

    def head(self, features: Tensor) -> Tensor:
        """Keep logits `(N, K)` of `features(obs)`."""
        return self.out(features)

    def features(self, obs: Tensor) -> Tensor:
        """The hidden layer, `(N, D)`; bytes are brought to [-1, 1]."""
        return self.encoder(obs.float() / 128 - 1 if obs.dtype == torch.uint8 else obs.float())


def make_policy(
    layout: Layout, width: int, keep: float, depth: int = 0, trunk: str = ""
) -> RegionPolicy | FlatPolicy:
    """The network that fits the layout; `depth` and `trunk` are those of a `RegionPolicy`.

    Raises:
        ValueError: there is a trunk and no map of regions, or no image, for it.
    """
    if layout.regions:
        return RegionPolicy(layout, width, keep, depth, trunk)
    if trunk:
        raise ValueError("the features of a parser need regions to observe: regions+image")
    return FlatPolicy(layout, width, keep)
