"""Section 8 of `benchmarks.throughput`: memory of the vector environment, in fresh processes."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.throughput_setup import make_setup
from recognizer.memory import keep_freed_memory
from sarface_env.env import SARFaceVectorEnv
from sarface_env.scorers import Score


class Thrifty:
    """A scorer that needs no memory to speak of, so that what is left is the environment's."""

    device = torch.device("cpu")
    mean_colour = (128.0, 128.0, 128.0)
    version = 0

    def score(self, images: Tensor, targets: Tensor) -> Score:
        """Scores by a single pixel."""
        margin = images[:, 0, 50, 50].float() / 128 - 1
        return Score(margin > 0, margin > 0.1, margin)


def memory(num_envs: list[int], steps: int) -> dict[str, Any]:
    """Peaks of memory against the number of environments, and growth over many steps.

    Returns:
        Megabytes at peak with the embedded recognizer and with a scorer without activations,
        bytes an environment (slope of a line through the latter), and the growth in kilobytes from
        the 100th to the last of `steps` steps.
    """
    peaks = {
        who: {str(n): _in_a_process(n, 6, who == "embedded")[0] for n in num_envs}
        for who in ("embedded", "no network")
    }
    x, y = np.array(num_envs), 2**20 * np.array(list(peaks["no network"].values()))
    slope, offset = np.polyfit(x, y, 1)
    _, growth = _in_a_process(64, steps, True)
    _, growth_thrifty = _in_a_process(64, steps, False)
    return {
        "observation": "regions+image",
        "peak_megabytes": peaks,
        "bytes_per_environment": float(slope),
        "largest_distance_from_the_line_megabytes": float(
            np.abs(slope * x + offset - y).max() / 2**20
        ),
        "steps": steps,
        "growth_kilobytes": {"embedded": growth, "no network": growth_thrifty},
    }


def _in_a_process(num_envs: int, steps: int, network: bool) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (num_envs, steps, network))


def _measure(num_envs: int, steps: int, network: bool) -> tuple[float, float]:
    """Peak in megabytes, and growth in kilobytes after the first hundred steps."""
    keep_freed_memory()
    setup = make_setup("faceworld")
    scorer: Any = setup.scorer if network else Thrifty()
    env = SARFaceVectorEnv(
        num_envs, dataset=setup.faces, recognizer=scorer, observation="regions+image"
    )
    everything = torch.arange(len(setup.faces))
    env.core.full_score(everything)
    env.core.regions(everything)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    before = 0.0
    for step in range(steps):
        env.step(rng.integers(0, 2, (num_envs, env.core.bits), dtype=np.int8))
        if step == 100:
            before = _status("VmRSS")
    return _status("VmHWM") / 1024, _status("VmRSS") - before


def _status(field: str) -> float:
    """Kilobytes of a line in /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1])
