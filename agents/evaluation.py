"""Evaluate policies face by face and report means with intervals over identities."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class Predicts(Protocol):
    """Anything with Stable-Baselines3's `predict`."""

    def predict(self, obs: Any, *, deterministic: bool) -> tuple[Any, Any]:
        """Actions for observations, and a state that is not used here."""
        ...


METRICS = {
    "reward": "reward",
    "correct": "masked_correct",
    "margin-correct": "masked_margin_correct",
    "kept pixels": "kept",
}


@dataclass
class Result:
    """What a policy did on every face of an evaluation; arrays are `(N, ...)`.

    Attributes:
        name: of the policy.
        values: per face and metric of `METRICS`.
        labels: identity of every face.
        indices: the faces, in the order of the arrays.
        masks: keep bits `(N, K)`.
        present: which selectable regions the face has `(N, K)`.
        calls: images the recognizer scored for it.
    """

    name: str
    values: dict[str, np.ndarray]
    labels: np.ndarray
    indices: np.ndarray
    masks: np.ndarray
    present: np.ndarray
    calls: int = 0
    _weights: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def mean(self, metric: str) -> float:
        """Mean over faces."""
        return float(self.values[metric].mean())

    def interval(self, metric: str, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % percentile bootstrap interval of the mean, resampling identities."""
        return bootstrap_interval(self.values[metric], self.labels, draws, seed)


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` `(N,)`, resampling `groups`.

    Faces of one identity are not independent, so identities are what is drawn.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = np.bincount(group)
    total = np.bincount(group, weights=values.astype(np.float64))
    drawn = np.random.default_rng(seed).multinomial(
        len(count), np.full(len(count), 1 / len(count)), size=draws
    )
    means = (drawn @ total) / (drawn @ count)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def evaluate(policy: Predicts, env: Any, indices: np.ndarray, name: str = "") -> Result:
    """Run a policy, without exploration, once on each of the given faces.

    Args:
        policy: any policy or trained agent.
        env: a `SARFaceVectorEnv`; its episodes in progress are abandoned.
        indices: faces of its split `(N,)`.
        name: shown in tables; by default the policy's own.
    """
    inner = env.unwrapped
    rows: dict[str, list[np.ndarray]] = {}
    inner.core.forget_masks()  # what one policy asked is not free for the next
    before = inner.core.calls
    for start in range(0, len(indices), env.num_envs):
        batch = indices[start : start + env.num_envs]
        # The last batch is filled up with its first face, and the copies are cut off below.
        shown = (
            np.resize(batch, env.num_envs)
            if len(batch) == env.num_envs
            else np.concatenate([batch, np.full(env.num_envs - len(batch), batch[0])])
        )
        obs, info = env.reset(options={"index": shown})
        actions, _ = policy.predict(obs, deterministic=True)
        _, reward, _, _, step = env.step(actions)
        final = step["final_info"] | {"reward": reward, "mask": np.asarray(actions)}
        final["action_mask"] = info["action_mask"]
        for key, value in final.items():
            if not key.startswith("_"):
                rows.setdefault(key, []).append(value[: len(batch)])
    columns = {key: np.concatenate(value) for key, value in rows.items()}
    return Result(
        name or getattr(policy, "name", "policy"),
        {metric: columns[key].astype(np.float64) for metric, key in METRICS.items()},
        columns["label"],
        columns["index"],
        columns["mask"].astype(bool),
        columns["action_mask"],
        inner.core.calls - before,
    )


def table(results: list[Result]) -> str:
    """A text table: every metric with its 95 % interval, in percent but for the reward."""
    width = 1 + max(len("policy"), *(len(result.name) for result in results))
    lines = [f"{'policy':<{width}}" + "".join(f"{metric:>23}" for metric in METRICS)]
    for result in results:
        cells = []
        for metric in METRICS:
            scale, digits = (1, 3) if metric == "reward" else (100, 1)
            low, high = result.interval(metric)
            cells.append(
                f"{scale * result.mean(metric):.{digits}f} "
                f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
            )
        lines.append(f"{result.name:<{width}}" + "".join(f"{cell:>23}" for cell in cells))
    return "\n".join(lines)
