"""`SARFace-v0`: the single and the vector environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sarface_env.core import Outcome
from sarface_env.episodes import Episodes
from sarface_env.options import EnvOptions, build_core
from sarface_env.partitions import Partition
from sarface_env.rendering import panels, render_faces


class _RegionSelectionMixin:
    """What both classes offer beside the Gymnasium methods."""

    def _build(self, num_envs: int, render_mode: str | None, options: dict[str, Any]) -> None:
        modes = self.metadata["render_modes"]  # type: ignore[attr-defined]
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"unknown render mode {render_mode!r}; there are {', '.join(modes)}")
        try:
            self.options = EnvOptions(**options)
        except TypeError:
            names = EnvOptions.__dataclass_fields__
            unknown = ", ".join(sorted(set(options) - set(names)))
            raise TypeError(f"unknown option {unknown}; there are {', '.join(names)}") from None
        self.render_mode = render_mode
        self.core = build_core(self.options)
        self.episodes = Episodes(
            self.core, num_envs, self.options.observation, self.options.obs_size
        )

    @property
    def partition(self) -> Partition:
        """The partition in use: names of the regions and which of them the action's bits are."""
        return self.core.partition

    @property
    def indices(self) -> np.ndarray:
        """The faces being shown, `(N,)` int64."""
        if self.episodes.indices is None:
            raise RuntimeError("call reset() first")
        return self.episodes.indices.numpy()

    def evaluate(self, indices: Any, masks: Any) -> Outcome:
        """Score masks on faces without touching the episode.

        Args:
            indices: faces of the split, `(N,)`.
            masks: keep bits, `(N, K)`, or `(N, G, K)` for G masks a face. Equal masks of a face
                are scored once.

        Returns:
            Rewards, scores of the full and of the masked image, and fractions kept.
        """
        return self.core.evaluate(
            torch.as_tensor(np.asarray(indices), dtype=torch.int64), torch.as_tensor(masks)
        )

    def panels(self, indices: Any, masks: Any) -> list[list[np.ndarray]]:
        """For every face its image, its coloured regions and its masked image, RGB `(H, W, 3)`."""
        return panels(self.core, torch.as_tensor(np.asarray(indices)), torch.as_tensor(masks))

    def _frames(self) -> list[np.ndarray]:
        if self.episodes.indices is None:
            raise RuntimeError("call reset() before render()")
        return render_faces(self.core, self.episodes.indices, self.episodes.masks)

    def __getstate__(self) -> dict[str, Any]:
        # A core made from names is made again from them: no weights or images in the pickle.
        state = self.__dict__.copy()
        state["episodes"] = self.episodes.state_dict()
        del state["core"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        episodes = state.pop("episodes")
        self.__dict__.update(state)
        self.core = build_core(self.options)
        self.episodes = Episodes(
            self.core, len(episodes["keys"]), self.options.observation, self.options.obs_size
        )
        self.episodes.load_state_dict(episodes)


class SARFaceEnv(_RegionSelectionMixin, gym.Env):
    """Which regions of a face should a recognizer look at?

    ## Description
    An agent sees how a face falls into regions and decides for each whether a face recognizer may
    look at it. Dropped regions are filled with the recognizer's mean colour. A hat, a hand, a
    patch of somebody else's face pull an embedding away from its identity; the reward tells
    whether the recognizer, looking at what is left, is *margin-correct*: its margin-penalised
    logit of the true identity beats all others. One face, one decision: a contextual bandit in
    one-step episodes.

    ## Action Space
    `MultiBinary(K)`: bit k keeps (1) or drops (0) selectable region k of the partition. With the
    default `sarface24`, K = 12: neck, cloth, four quadrants of background and of skin, two halves
    of hair; face parts are always kept. Bits of regions that a face does not have are no-ops;
    `info["action_mask"]` says which are present.

    ## Observation Space
    `Box(0, 255, (C, H, W), uint8)`. By default C = 1, the region map: every pixel holds its region
    number. `observation="regions+image"` appends the BGR image (C = 4), `"image"` is the image
    alone. `"regions+parsing+image"` (C = 5) shows the parsing map's classes in between, which the
    regions of a grid do not tell. `obs_size` asks for a smaller square.

    ## Rewards
    Functions of the full image's score, the masked image's score and the fraction of pixels kept:
    - `flip` (default): +1 when masking makes a wrong face right, -1 for the reverse, else 0;
      right means margin-correct. `flip_plain` judges by the plain arg-max, as published.
    - `margin`: gain in margin, scaled by 5 and clipped to [-1, 1].
    - `contrast`: five times the gain in contrast, the target's lead over the average other, clipped
      to [-1, 1]: less noisy than `margin`.
    - `patchdrop`: 1 - kept^2 when right, -0.5 when wrong.
    - weighted sums, for example `flip+0.5*margin`.

    ## Starting State
    A face drawn uniformly from the split. `reset(options={"index": i})` shows face i.

    ## Episode End
    Every episode terminates after one step; none is truncated.

    ## Arguments
    The fields of `sarface_env.options.EnvOptions`:
    `gym.make("SARFace-v0", partition="grid7x7", reward="margin", split="test")`.
    - `dataset`: `faceworld` (the embedded synthetic world), the path of photographs (a folder of
      `NAME/*.jpg`, LFW's form, a RecordIO set or a `.lst`), or a `FaceSet`.
    - `split`: `train`, `val` or `test`; `folds`: which folds of `pairs.txt` they are (`1-5/6/7`).
    - `recognizer`: `faceworld`, `resnet29`, a file of weights, or a `Scorer`. Photographs are
      judged among the people of the split, each known by the mean of the other images.
    - `parser`: of photographs, `light` or a file of weights.
    - `occlusion`: what covers photographs before they are parsed: `clean`, `patch`, `object`,
      `sunglasses`, `mask`, `scarf`, `mixed`; `severity`, 0.25 to 2; `occlusion_seed`;
      `coverings`, ways in which every training photograph is covered; `alike`, how many share an
      occluder and are shown side by side; `min_images` of people whose photographs are trained on.
    - `partition`: `sarface24`, `celeba19`, `gridROWSxCOLUMNS`, `sarface24xgrid4x4`.
    - `reward`: see above. `fill` of dropped pixels: `mean`, `zero`, `blur`, `inpaint` (slow).
    - `observation` and `obs_size`: see above. `device`: `auto`, `cpu`, `cuda`. `precision` of the
      recognizer: `float32`, `bfloat16`, `float16`, `fastest`.

    Photographs are aligned, occluded, parsed and enrolled at first use, with progress bars, and
    read from `$SARFACE_CACHE` (default `~/.cache/sarface`) from then on.

    ## Info
    `reset`: `index`, `label`, `action_mask`. `step` adds `kept` and, for `full` and `masked`,
    `*_correct`, `*_margin_correct` and `*_margin`.

    ## Vectorized environment
    `gym.make_vec("SARFace-v0", num_envs=64)` is `SARFaceVectorEnv`, which scores all faces in one
    batch. Environment i of seed s equals the single environment of seed s + i.

    ## Version History
    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}

    def __init__(self, render_mode: str | None = None, **options: Any):
        self._build(1, render_mode, options)
        self.observation_space = self.episodes.observation_space
        self.action_space = self.episodes.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self.episodes.keys.any():
            self.episodes.seed([seed])
        info = self.episodes.begin((options or {}).get("index"))
        return self.episodes.observe()[0], _first(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, info = self.episodes.decide(np.asarray(action)[None])
        return self.episodes.observe()[0], float(reward[0]), True, False, _first(info)

    def render(self) -> np.ndarray | None:
        """The image, its regions with their names, and what was kept: uint8 RGB, or None."""
        return self._frames()[0] if self.render_mode == "rgb_array" else None

    def action_masks(self) -> np.ndarray:
        """Allowed values of every bit, `(2K,)` bool, as sb3-contrib's MaskablePPO wants them.

        A region that the face does not have can only be kept.
        """
        assert self.episodes.indices is not None
        present = self.core.present(self.episodes.indices).numpy()[0]
        return np.stack([present, np.ones_like(present)], 1).ravel()


class SARFaceVectorEnv(_RegionSelectionMixin, VectorEnv):
    """`SARFaceEnv` for many faces at once: one batch, one recognizer forward.

    Autoreset is `SAME_STEP`: `step` returns the next faces' observations; what belongs to the
    finished episodes is in `final_obs` and `final_info`.

    Args:
        num_envs: faces a step.
        render_mode: None or `rgb_array`; `render()` then gives one frame an environment, of the
            decisions just taken.
        options: as for `SARFaceEnv`.
    """

    metadata: dict[str, Any] = {
        **SARFaceEnv.metadata,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **options: Any):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self._build(num_envs, render_mode, options)
        self.single_observation_space = self.episodes.observation_space
        self.single_action_space = self.episodes.action_space
        self.observation_space = _batched(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._decided: list[np.ndarray] | None = None
        self._everyone = np.ones(num_envs, bool)
        self._everyone.flags.writeable = False  # it is in every info

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None or not self.episodes.keys.any():
            if seed is None or isinstance(seed, int | np.integer):
                seed = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
            if len(seed) != self.num_envs:
                raise ValueError(f"expected {self.num_envs} seeds, got {len(seed)}")
            super().reset(seed=seed[0])
            self.episodes.seed(seed)
        info = self._masked(self.episodes.begin((options or {}).get("index")))
        self._decided = None
        self._obs = self.episodes.observe()
        return self._obs, info

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward, final = self.episodes.decide(actions)
        if self.render_mode is not None:
            self._decided = self._frames()
        everyone, final_obs = self._everyone, self._obs
        info = self._masked(self.episodes.begin())
        info |= {
            "final_obs": final_obs,
            "_final_obs": everyone,
            "final_info": self._masked(final),
            "_final_info": everyone,
        }
        self._obs = self.episodes.observe()
        return self._obs, reward.astype(np.float64), everyone.copy(), ~everyone, info

    @property
    def alike(self) -> int:
        """So many environments in a row show faces that are covered alike."""
        return self.episodes.alike

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence of faces is, and what is known of them, for `resume`."""
        return {"episodes": self.episodes.state_dict(), "core": self.core.state_dict()}

    def resume(self, state: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Continue from `state_dict()`: the observations and info it was taken at."""
        envs = len(state["episodes"]["keys"])
        if envs != self.num_envs:
            raise ValueError(f"the state is of {envs} environments, this one has {self.num_envs}")
        self.episodes.load_state_dict(state["episodes"])
        self.core.load_state_dict(state["core"])
        self._decided = None
        self._obs = self.episodes.observe()
        return self._obs, self._masked(self.episodes.info())

    def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
        """Gymnasium's vector form of an info: every key with a flag for each environment."""
        return info | {f"_{key}": self._everyone for key in info}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame an environment: the last decisions, or, before any, the faces shown."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(self._frames() if self._decided is None else self._decided)

    def action_masks(self) -> np.ndarray:
        """Allowed values of every bit, `(N, 2K)` bool; see `SARFaceEnv.action_masks`."""
        assert self.episodes.indices is not None
        present = self.core.present(self.episodes.indices).numpy()
        return np.stack([present, np.ones_like(present)], 2).reshape(self.num_envs, -1)


def _batched(space: spaces.Box, n: int) -> spaces.Box:
    """`batch_space(space, n)` without bounds of its own for every pixel of every environment."""
    batched: Any = batch_space(space, 1)
    batched._shape = (n, *space.shape)
    for name in ("low", "high", "bounded_below", "bounded_above"):
        setattr(batched, name, np.broadcast_to(getattr(batched, name), batched._shape))
    return batched


def _first(info: dict[str, np.ndarray]) -> dict[str, Any]:
    """The info of the only face; numbers as Python's own, arrays as they are."""
    return {k: v[0].item() if v.ndim == 1 else v[0] for k, v in info.items()}
