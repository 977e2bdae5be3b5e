"""Where the time of a vector step goes: recognizer, masking, partition, observations, the rest.

Steps random masks on faces whose full-image scores and regions are known already, as they are after
the first pass over a data set, and adds up the time inside each part.
"""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch

import sarface_env  # noqa: F401  (registers SARFace-v0)
from benchmarks.common import RESULTS, environment, print_table, write_results
from recognizer.cli import parse_options

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass
class Options:
    """Split the time of `SARFaceVectorEnv.step` into its parts."""

    num_envs: list[int] = field(default_factory=lambda: [16, 64, 256])
    """Environments, one row each."""
    steps: int = 20
    """Steps that are timed, after two that are not."""
    name: str = "step_profile"
    """Name of the files in benchmarks/results."""


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m benchmarks.step_profile`."""
    options = parse_options(Options, argv)
    about = environment("gymnasium")
    rows = {n: profile(n, options.steps) for n in options.num_envs}
    parts = list(next(iter(rows.values()))["share"])
    print_table(
        ["environments", "faces/s", *(f"{part} %" for part in parts)],
        [
            [n, f"{row['faces_per_second']:.0f}", *(f"{100 * row['share'][p]:.1f}" for p in parts)]
            for n, row in rows.items()
        ],
    )
    write_results(options.name, {"environment": about, "rows": rows})
    draw(rows, parts)


def profile(num_envs: int, steps: int) -> dict[str, Any]:
    """Faces a second and the share of time of every part, at one number of environments."""
    env: Any = gym.make_vec("SARFace-v0", num_envs=num_envs, split="val").unwrapped
    core = env.core
    everything = torch.arange(len(core))
    core.full_score(everything)
    core.regions(everything)
    spent: dict[str, float] = defaultdict(float)
    for part, owner, method in (
        ("recognizer", core.scorer, "score"),
        ("masking", core, "apply"),
        ("observations", env.episodes, "observe"),
    ):
        setattr(owner, method, _timed(getattr(owner, method), part, spent))
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (steps + 2, num_envs, core.bits), dtype=np.int8)
    for mask in masks[:2]:
        env.step(mask)
    spent.clear()
    start = time.perf_counter()
    for mask in masks[2:]:
        env.step(mask)
    total = time.perf_counter() - start
    for owner, method in ((core.scorer, "score"), (core, "apply"), (env.episodes, "observe")):
        delattr(owner, method)  # the scorer is shared within the process
    share = {part: seconds / total for part, seconds in spent.items()}
    share["rest"] = 1 - sum(share.values())
    return {"faces_per_second": num_envs * steps / total, "share": share}


def _timed(method: Any, part: str, spent: dict[str, float]) -> Any:
    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - start

    return wrapper


def draw(rows: dict[int, dict[str, Any]], parts: list[str]) -> None:
    """Stacked bars of the shares."""
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.6 * len(rows)), layout="constrained")
    left = np.zeros(len(rows))
    for part in parts:
        share = np.array([row["share"][part] for row in rows.values()])
        axis.barh([str(n) for n in rows], share, left=left, label=part)
        left += share
    axis.set(xlabel="share of a step", ylabel="environments", xlim=(0, 1))
    axis.legend(fontsize=8, ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(RESULTS / "step_profile.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
