"""Decides by looking: of some masks a face, the one with which the recognizer is surest."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from agents.baselines import MANY, KeepAll, MaskPolicy
from agents.evaluation import Predicts

Propose = Callable[[np.ndarray], Tensor]
"""Masks `(N, M, K)` bool to choose among, for observations `(N, ...)`."""


class MostConfident(MaskPolicy):
    """Has the recognizer look at some masks of each face, and takes the one it is surest with.

    Sure is whoever it takes the face for: the lead of the best class over the second best, for
    which nobody has to know the right one. So this is no oracle; but a decision costs as many
    recognizer calls as masks are looked at, where an agent's own costs none.

    Args:
        env: the vector environment, which is asked which faces are shown and how sure the
            recognizer is.
        propose: what to choose among. Of equals the first is taken.
        name: shown in tables.
    """

    def __init__(self, env, propose: Propose, name: str):
        super().__init__(env)
        self.propose, self.name = propose, name

    def predict(
        self, obs: np.ndarray, state=None, episode_start=None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """Keep bits `(N, K)` int8 for the faces shown `(N, ...)`; the state is always None."""
        masks = self.propose(obs)
        indices = torch.as_tensor(self.env.indices)
        best = self.env.core.confidence(indices, masks).argmax(1)
        return masks[torch.arange(len(masks)), best].numpy().astype(np.int8), None


def random_masks(bits: int, masks: int, seed: int = 0) -> Propose:
    """Proposes so many masks that keep every region with probability one half."""
    generator = torch.Generator().manual_seed(seed)
    return lambda obs: torch.rand((len(obs), masks, bits), generator=generator) < 0.5


def with_flips(policy: Predicts) -> Propose:
    """Proposes the policy's own mask, and that with one bit flipped, for every bit: K + 1."""

    def propose(obs: np.ndarray) -> Tensor:
        own = _decided(policy, obs)[:, None]
        return torch.cat([own, own ^ torch.eye(own.shape[2], dtype=torch.bool)], 1)

    return propose


def any_of(policies: Sequence[Predicts]) -> Propose:
    """Proposes what each of the policies would do."""
    return lambda obs: torch.stack([_decided(policy, obs) for policy in policies], 1)


def second_looks(env, agent: Predicts) -> list[MostConfident]:
    """The agent with further looks at every face, and as many looks at random masks beside it.

    Two looks: at everything, and at what the agent keeps. K + 1: at what it keeps, and at that with
    each bit flipped; not where regions are many. None, if the scorer does not know how sure it is.
    """
    inner = env.unwrapped
    if not hasattr(inner.core.scorer, "confidence"):
        return []
    bits: int = inner.single_action_space.n
    looks = {2: ("full or agent", any_of([KeepAll(env), agent]))}
    if bits <= MANY:
        looks[bits + 1] = ("agent or a flip", with_flips(agent))
    policies = []
    for number, (name, propose) in looks.items():
        rivals = {f"{number} random masks": random_masks(bits, number), name: propose}
        policies += [MostConfident(env, p, f"surest: {name}") for name, p in rivals.items()]
    return policies


def _decided(policy: Predicts, obs: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(policy.predict(obs, deterministic=True)[0])).bool()
