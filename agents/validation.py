"""How good an agent is while it trains: the same validation faces, again and again."""

import math
from typing import Any

import numpy as np
import torch

from agents.evaluation import Predicts, Result, evaluate


class Validation:
    """Scores a policy, without exploration, on fixed faces, and remembers the best score.

    It draws no random numbers and scores beside the training's environment, so that trainings are
    the same with and without it.

    Args:
        env: a `SARFaceVectorEnv` on the validation split.
        faces: how many, always the same; all of the split if it has fewer.
        metric: of `agents.evaluation.METRICS`, what is best.

    Attributes:
        best: best mean of the metric so far.
        result: of the last call.
    """

    def __init__(self, env: Any, faces: int, metric: str = "margin-correct"):
        self.env, self.metric = env, metric
        self.indices = np.random.default_rng(0).permutation(len(env.unwrapped.core))[:faces]
        self.best = -math.inf
        self.result: Result | None = None

    def __call__(self, policy: Predicts) -> dict[str, float]:
        """Shares of faces that are margin-correct and correct, and how often regions are kept.

        A region's rate is of the faces that have it; regions that no face has are left out.
        """
        result = self.result = evaluate(policy, self.env, self.indices)
        metrics = {
            f"validation/{metric.replace('-', '_').replace(' ', '_')}": result.mean(metric)
            for metric in ("margin-correct", "correct", "kept pixels", "reward")
        }
        partition = self.env.unwrapped.partition
        present = result.present.sum(0)
        kept = (result.masks & result.present).sum(0)
        for bit, region in enumerate(partition.selectable):
            if present[bit]:
                metrics[f"keep_rate/{partition.names[region]}"] = float(kept[bit] / present[bit])
        return metrics

    def improved(self) -> bool:
        """Whether the last call's score is at least the best before it, which it then becomes.

        Of equal scores the later one is taken: it comes with the smaller learning rate.
        """
        assert self.result is not None
        score = self.result.mean(self.metric)
        if score < self.best:
            return False
        self.best = score
        return True

    def picture(self, faces: int = 8) -> np.ndarray:
        """Image, regions and what the last call's policy keeps of the first faces, side by side.

        Returns:
            uint8 RGB `(3H, faces * W, 3)`.
        """
        assert self.result is not None
        masks = torch.from_numpy(self.result.masks[:faces])
        panels = self.env.unwrapped.panels(self.result.indices[:faces], masks)
        return np.concatenate([np.concatenate(column, 0) for column in panels], 1)
