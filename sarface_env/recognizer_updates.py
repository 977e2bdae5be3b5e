"""Training steps of the recognizer that judges an environment, on faces masked by a policy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recognizer.recognizer import Recognizer
from recognizer.training import Objective, TrainingDivergedError
from recognizer.training_options import TrainOptions
from recognizer.training_setup import build_optimizer
from sarface_env.env import SARFaceVectorEnv
from sarface_env.episodes import Episodes
from sarface_env.scorers import EnrolledScorer, MarginScorer

Predict = Callable[[np.ndarray], np.ndarray]


class RecognizerUpdates:
    """Trains an environment's recognizer, backbone and class weights, on the environment's faces.

    Where people are known by their enrolled images, they get class weights for the training, which
    start as what they are known by; they are judged by their images still, enrolled anew.

    The faces of a batch and which of them are masked are functions of (seed, step).

    Args:
        env: whose scorer is a `MarginScorer` or `EnrolledScorer` of its own, not shared with other
            environments that should not change.
        batch_size: faces a step.
        mix: probability that a face is masked by the policy; the others are shown in full.
        optimizer: `sgd` with momentum 0.9, or `adamw`.
        lr: learning rate, constant.
        weight_decay: of matrices and convolutions.
        seed: of the order of faces and of the mixing.
        head: margin head of people who are enrolled: `cosface`, `adaface` or `arcface`.
        margin: of that head.
        followers: other scorers of the same recognizer, which take over its changes too.

    Attributes:
        step: optimizer steps so far.
        folder: where a batch whose loss is no number is saved, if given.

    Raises:
        ValueError: the recognizer has no class weights to train, or there are too few faces.
    """

    def __init__(
        self,
        env: SARFaceVectorEnv,
        batch_size: int = 64,
        mix: float = 0.5,
        optimizer: str = "adamw",
        lr: float = 1e-4,
        weight_decay: float = 5e-4,
        seed: int = 0,
        head: str = "cosface",
        margin: float = 0.1,
        followers: Sequence[MarginScorer | EnrolledScorer] = (),
    ):
        inner = env.unwrapped
        self.core, self.mix, self.batch_size, self.seed = inner.core, mix, batch_size, seed
        scorer = self.core.scorer
        if not isinstance(scorer, MarginScorer | EnrolledScorer):
            raise ValueError(
                "only a recognizer with class weights of the data's people, or people enrolled "
                f"from it, can be trained in turn with an agent; here a {type(scorer).__name__} "
                "judges"
            )
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must lie in [0, 1], got {mix}")
        self.epoch_steps = len(self.core) // batch_size
        if not self.epoch_steps:
            raise ValueError(f"{len(self.core)} faces are too few for a batch of {batch_size}")
        self.scorers = [scorer, *followers]
        self.trained = scorer.recognizer
        if isinstance(scorer, EnrolledScorer):
            # The same backbone with a head of its own.
            self.trained = Recognizer(
                scorer.recognizer.backbone,
                scorer.recognizer.spec,
                scorer.gallery.head(head, m=margin),
                scorer.recognizer.name,
            ).to(scorer.device)
        self.objective = Objective(self.trained)
        self.optimizer = build_optimizer(
            self.trained,
            TrainOptions(optimizer=optimizer, lr=lr, weight_decay=weight_decay),  # type: ignore[arg-type]
        )
        options = inner.options
        self._shown = Episodes(self.core, batch_size, options.observation, options.obs_size)
        self.step = 0
        self.folder: Path | None = None

    def learn(self, steps: int, predict: Predict) -> float:
        """Train until `steps` steps have been made, counted from the start of training.

        Afterwards the scorer judges with the new weights, and what it scored before is forgotten.

        Args:
            steps: optimizer steps in all.
            predict: keep bits `(N, K)` of observations `(N, C, h, w)`.

        Returns:
            Mean loss of the steps made; NaN if there were none.

        Raises:
            TrainingDivergedError: the loss is no longer finite.
        """
        losses: list[float] = []
        self.trained.train()
        while self.step < steps:
            losses.append(self._update(predict))
        self.trained.eval()
        if not losses:
            return float("nan")
        self._refresh()
        return float(np.mean(losses))

    def _refresh(self) -> None:
        for scorer in self.scorers:
            scorer.refresh()

    def _update(self, predict: Predict) -> float:
        epoch, place = divmod(self.step, self.epoch_steps)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.core))
        index = np.sort(order[place * self.batch_size : (place + 1) * self.batch_size])
        random = np.random.default_rng([self.seed, self.step, 1])
        self._shown.begin(index)
        masks = torch.ones((self.batch_size, self.core.bits), dtype=torch.bool)
        masked = torch.from_numpy(random.random(self.batch_size) < self.mix)
        if masked.any():
            chosen = torch.as_tensor(predict(self._shown.observe())).bool()
            masks[masked] = chosen[masked]
        faces = torch.from_numpy(index)
        images, labels = self.core.apply(faces, masks), self.core.faces.labels[faces]
        torch.manual_seed(int(random.integers(2**62)))  # dropout
        loss = self.objective(images, labels.to(self.trained.device))
        if not torch.isfinite(loss):
            self._stop({"index": faces, "masks": masks, "images": images, "labels": labels})
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _stop(self, batch: dict[str, Tensor]) -> None:
        kept = ""
        if self.folder is not None:
            path = self.folder / "diverged.pt"
            torch.save(batch, path)
            kept = f"; the batch is in {path} (torch.load)"
        rate = self.optimizer.param_groups[0]["lr"]
        raise TrainingDivergedError(
            f"the recognizer's loss is not a number at its step {self.step}{kept}. "
            f"Lower its learning rate ({rate:g})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that continuing exactly needs."""
        return {
            "step": self.step,
            "recognizer": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.step = state["step"]
        self.trained.load_state_dict(state["recognizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._refresh()
