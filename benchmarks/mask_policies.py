"""Policies of `python -m benchmarks.policies` as the pixels they keep: constants and oracles."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.masked_pairs import Judge
from recognizer.data.disk_cache import cache_folder
from recognizer.data.faces import FaceSet
from sarface_env.core import RegionSelection
from sarface_env.env import SARFaceVectorEnv
from sarface_env.episodes import Episodes
from sarface_env.options import EnvOptions
from sarface_env.scorers import EnrolledScorer

_BATCH = 256


@dataclass(frozen=True)
class Run:
    """A run of `train_agent.py`: its agent, its environment, its recognizer if it trained one."""

    agent: Path
    env: EnvOptions
    recognizer: Path | None

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """The run of a folder, or ValueError if it holds none that is finished."""
        folder = Path(folder)
        # RUN is the best agent of the run; RUN/last the last one.
        run = folder.parent if (folder / "agent.safetensors").is_file() else folder
        pair = run / "best" if run == folder else folder
        try:
            config = json.loads((run / "config.json").read_text())
            known = {field.name for field in fields(EnvOptions)}
            env = EnvOptions(**{k: v for k, v in config["env"].items() if k in known})
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder} is neither a run of train_agent.py ({error}) nor the name of a policy"
            ) from None
        if not (run / "last" / "agent.safetensors").is_file():
            raise ValueError(f"{run}: the run is not finished; continue it with --resume true")
        own = pair / "recognizer.safetensors"
        return cls(pair / "agent.safetensors", env, own if own.is_file() else None)


class OracleScorer(EnrolledScorer):
    """What oracles look at: the margin of pair faces among the people of the pairs.

    People with a single image are known by it, uncovered; the others by their other images.
    """

    def __init__(self, judge: Judge):
        data = judge.data
        device = judge.engine.recognizer.device
        super().__init__(judge.engine.recognizer, data.clean, device, cache=judge.cache, least=1)
        self.targets = self.targets.repeat(data.ways)


def region_env(
    faces: FaceSet, scorer: Any, options: EnvOptions, reward: str = "margin"
) -> SARFaceVectorEnv:
    """The environment of a run's options over other faces."""
    return SARFaceVectorEnv(
        2,
        dataset=faces,
        recognizer=scorer,
        partition=options.partition,
        fill=options.fill,
        observation=options.observation,
        obs_size=options.obs_size,
        reward=reward,
    )


def kept_by(env: SARFaceVectorEnv, masks: Callable[[np.ndarray, np.ndarray], Tensor]) -> Tensor:
    """Pixels kept `(N, H, W)` of all faces by `masks(observations, face numbers)`."""
    core, keep = env.core, []
    for rows in np.array_split(np.arange(len(core)), -(-len(core) // _BATCH)):
        shown = Episodes(core, len(rows), env.options.observation, env.options.obs_size)
        shown.begin(rows)
        index = torch.from_numpy(rows)
        keep.append(core.keep_pixels(index, masks(shown.observe(), rows)))
    return torch.cat(keep)


def covered_regions(core: RegionSelection, rows: np.ndarray) -> Tensor:
    """Keep bits `(n, K)` that drop the regions more than half of which is covered."""
    index = torch.from_numpy(rows)
    if core.faces.occluders is None:
        return torch.ones((len(rows), core.bits), dtype=torch.bool)
    regions, covered = core.regions(index).flatten(1), core.faces.occluders[index].flatten(1)
    share = torch.zeros(len(rows), len(core.partition.names))
    share.scatter_add_(1, regions.long(), covered.float())
    share /= core.region_pixels(index).clamp_min(1)
    return share[:, list(core.partition.selectable)] <= 0.5


def cached_masks(core: RegionSelection, name: str, make: Callable[[], Tensor]) -> Tensor:
    """What `make` returns for the faces of a core, kept in `$SARFACE_CACHE`."""
    digest = hashlib.blake2b(digest_size=16)
    recognizer = core.scorer.gallery.embeddings  # type: ignore[attr-defined]
    maps = core.faces.parsing if core.partition.needs_parsing else None
    digest.update(json.dumps([name, core.partition.name, core.fill_name]).encode())
    for part in (core.faces.images, maps, recognizer):
        if part is not None:
            for rows in part.split(1024):
                digest.update(rows.contiguous().numpy().data)
    path = cache_folder() / f"masks-{digest.hexdigest()}.npy"
    if not path.is_file():
        masks = make().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        with partial.open("wb") as file:
            np.save(file, masks)
        partial.replace(path)
    return torch.from_numpy(np.load(path))
