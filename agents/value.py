"""Learns what whole masks are worth, and searches each face for the mask worth most."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.gain import Gain, GainOptions
from agents.policy import FlatPolicy, RegionPolicy

_EDGES = 10  # rectangles that the search begins with have edges at tenths of the image
_FLIPS = 16  # most regions that it then changes
_FACES = 16  # searched at a time; bounds the memory


@dataclass
class ValueOptions(GainOptions):
    """Options of mask values; those of gain regression."""

    masks: int = 8
    own: float = 0.2
    threshold: float = 0.1
    """A face is masked only if the mask found is worth more than this, in units of the rewards'
    spread: the best of many uncertain values looks better than it is."""
    floor: float | None = 1.5


class MaskValue(nn.Module):
    """Values masks by what they drop and what they leave of a face.

    Features of regions, weighted by area, are averaged over what is dropped and over what is kept;
    a small network judges both averages and the area dropped. The value also has a part that is the
    sum of a gain of every region, as in `Gain`. Keeping everything is worth 0.

    Args:
        policy: what features of regions come from.
    """

    def __init__(self, policy: RegionPolicy | FlatPolicy):
        super().__init__()
        self.policy = policy
        size, bits = policy.out.in_features, policy.layout.bits
        # Without a map of regions all bits share one observation; a learned code tells them apart.
        self.code = None if policy.layout.regions else nn.Parameter(torch.randn(bits, size) / 4)
        self.judge = nn.Sequential(
            nn.Linear(3 * size + 2, 2 * size),
            nn.ReLU(),
            nn.Linear(2 * size, size),
            nn.ReLU(),
            nn.Linear(size, 1),
        )
        self.gain = nn.Linear(size, 1)
        policy.out = nn.Identity()  # type: ignore[assignment]
        for parameter in (*self.judge[-1].parameters(), *self.gain.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, obs: Tensor, dropped: Tensor) -> Tensor:
        """Values `(N, M)` of masks that drop regions `(N, M, K)` of observations `(N, ...)`."""
        return self.values(*self.features(obs), dropped)

    def features(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of every region, `(N, K, D)`, and its share of the image `(N, K)`."""
        features, layout = self.policy.features(obs), self.policy.layout
        if self.code is not None:
            share = features.new_full((len(obs), layout.bits), 1 / layout.bits)
            return F.relu(features[:, None] + self.code), share
        regions = obs[:, 0].flatten(1).long()
        count = features.new_zeros((len(obs), layout.regions))
        count.scatter_add_(1, regions, features.new_ones(()).expand(regions.shape))
        return features, count[:, list(layout.selectable)] / regions.shape[1]

    def values(self, features: Tensor, share: Tensor, dropped: Tensor) -> Tensor:
        """`forward` from `features(obs)`."""
        weight = dropped * share[:, None]
        area = weight.sum(2, keepdim=True)
        lost = weight @ features / area.clamp_min(1e-6)
        weight = share[:, None] - weight
        left = weight @ features / weight.sum(2, keepdim=True).clamp_min(1e-6)
        known = torch.cat([lost, left, lost * left, area, area.sqrt()], 2)
        together = self.judge(known) * area.sqrt()
        return (together + dropped.float() @ self.gain(features)).squeeze(2)


class Value(Gain):
    """Predicts what a mask as a whole gains, and drops what the best mask of a face drops.

    As `Gain`, but the reward of a mask need not be a sum over regions: where half of what covers a
    face gains nothing and all of it much, sums say little. The best mask is searched without the
    recognizer: the best rectangle of regions, then one region after another changed as long as that
    raises the value.

    Args:
        env, options, seed, device: see `Gain`.
    """

    name = "value"
    policy: MaskValue
    Options: ClassVar[Any] = ValueOptions

    def __init__(
        self, env: Any, options: ValueOptions | None = None, seed: int = 0, device: str = "cpu"
    ):
        super().__init__(env, ValueOptions() if options is None else options, seed, device)
        self.policy = MaskValue(self.policy).to(self.device)  # type: ignore[arg-type]
        self.optimizer = self._make_optimizer()

    def _predicted(self, obs: Tensor, dropped: Tensor) -> Tensor:
        return self.policy(obs, dropped)

    @torch.no_grad()
    def logits(self, obs: Any) -> Tensor:
        """Keep logits `(N, K)`, 5 or -5: the mask that is found is all but certain to be taken."""
        obs = torch.as_tensor(obs, device=self.device)
        return torch.cat([5.0 - 10.0 * self._best(part) for part in obs.split(_FACES)])

    def _best(self, obs: Tensor) -> Tensor:
        """What the best mask found of every face drops, bool `(N, K)`."""
        features, share = self.policy.features(obs)
        rows = torch.arange(len(obs), device=obs.device)
        dropped = torch.zeros(share.shape, dtype=torch.bool, device=obs.device)
        value = features.new_zeros(len(obs))
        tried = self._rectangles(obs) if self.layout.regions else dropped[:, None]
        one = torch.eye(self.layout.bits, dtype=torch.bool, device=obs.device)
        for changed in range(1 + _FLIPS):
            best = self.policy.values(features, share, tried).max(1)
            better = best.values > value
            if changed and not better.any():
                break
            dropped = torch.where(better[:, None], tried[rows, best.indices], dropped)
            value = torch.where(better, best.values, value)
            tried = dropped[:, None] ^ one
        return dropped & (value > self.options.threshold)[:, None] & (share > 0)

    def _rectangles(self, obs: Tensor) -> Tensor:
        """Which regions have their middle in each rectangle, bool `(N, C, K)`."""
        low, high = torch.combinations(torch.arange(_EDGES + 1), 2).to(obs.device).T / _EDGES
        middle = self._middles(obs[:, 0])[:, None]
        inside = (middle > low[:, None, None]) & (middle <= high[:, None, None])
        rows, columns = inside.unbind(3)
        return (rows[:, :, None] & columns[:, None]).flatten(1, 2)
