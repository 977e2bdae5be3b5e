"""Training steps of the recognizer that judges an environment, on faces masked by a policy."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recognizer.data.augment import JITTERED, jitter
from recognizer.recognizer import Recognizer
from recognizer.training import Objective, TrainingDivergedError
from recognizer.training_options import TrainOptions
from recognizer.training_setup import build_optimizer, learning_rate
from sarface_env.env import SARFaceVectorEnv
from sarface_env.episodes import Episodes
from sarface_env.region_dropout import random_masks
from sarface_env.scorers import EnrolledScorer, MarginScorer

_MOST = 0.6  # of a face's regions that chance drops
Predict = Callable[[np.ndarray], np.ndarray]


class RecognizerUpdates:
    """Trains an environment's recognizer, backbone and class weights, on the environment's faces.

    Where people are known by their enrolled images, they get class weights for the training, which
    start as what they are known by; they are judged by their images still, enrolled anew. Or the
    recognizer learns to see through the masks without any classes: every masked face is drawn to
    what the first recognizer made of the same face, whole and uncovered, and, with a `temperature`,
    away from what other people are known by. That needs few people, and leaves whole faces about
    where they were.

    The faces of a batch and which of them are masked are functions of (seed, step). Where the
    scorer judges in bfloat16, training is of mixed precision: forth and back in bfloat16, weights
    and loss in float32.

    Args:
        env: whose scorer is a `MarginScorer` or `EnrolledScorer` of its own, not shared with other
            environments that should not change.
        batch_size: faces a step.
        mix: probability that a face is masked; the others are shown in full.
        masks: by whom: `random` drops a share of the regions drawn for each face from [0, 0.6];
            otherwise `predict` is asked, with `greedy` once for each face in a call of `learn`.
        optimizer: `sgd` with momentum 0.9, or `adamw`.
        lr: learning rate.
        decay_steps: steps in which the learning rate falls to zero along a cosine; None: constant.
        warmup: steps in which it rises, at first.
        weight_decay: of matrices and convolutions.
        seed: of the order of faces and of the mixing.
        head: margin head of people who are enrolled: `cosface`, `adaface` or `arcface`; `none` for
            the first recognizer's embeddings as targets.
        margin: of that head.
        temperature: without a head, of the softmax by which people are told apart; 0: they are not.
        frozen: so many of the backbone's convolutions and dense layers, in the order in which it
            defines them, stay as they are.
        jitter: strength of `recognizer.data.augment.jitter` on the faces of a batch.
        blend: what judges afterwards lies so much of the way from the first weights to the trained
            ones, between which training goes on from the latter. The mean often holds for more
            people than either: "Robust fine-tuning of zero-shot models", Wortsman et al., CVPR
            2022.
        followers: other scorers of the same recognizer, which take over its changes too.

    Attributes:
        step: optimizer steps so far.
        folder: where a batch whose loss is no number is saved, if given.

    Raises:
        ValueError: the recognizer has no class weights to train, there are too few faces, `none`
            where nobody is enrolled, or nothing is left to train.
    """

    def __init__(
        self,
        env: SARFaceVectorEnv,
        batch_size: int = 64,
        mix: float = 0.5,
        masks: str = "agent",
        optimizer: str = "adamw",
        lr: float = 1e-4,
        decay_steps: int | None = None,
        warmup: int = 0,
        weight_decay: float = 5e-4,
        seed: int = 0,
        head: str = "cosface",
        margin: float = 0.1,
        temperature: float = 0.0,
        frozen: int = 0,
        jitter: float = 0.0,
        blend: float = 1.0,
        followers: Sequence[MarginScorer | EnrolledScorer] = (),
    ):
        inner = env.unwrapped
        self.core, self.mix, self.batch_size, self.seed = inner.core, mix, batch_size, seed
        self.masks, self.decay_steps, self.jitter = masks, decay_steps, jitter
        self.options = TrainOptions(
            optimizer=optimizer,  # type: ignore[arg-type]
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            schedule="cosine" if decay_steps else "steps",
            milestones=[],
            epochs=1,
        )
        scorer = self.core.scorer
        if not isinstance(scorer, MarginScorer | EnrolledScorer):
            raise ValueError(
                "only a recognizer with class weights of the data's people, or people enrolled "
                f"from it, can be trained in turn with an agent; here a {type(scorer).__name__} "
                "judges"
            )
        for name, share in (("mix", mix), ("blend", blend)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        self.epoch_steps = len(self.core) // batch_size
        if not self.epoch_steps:
            raise ValueError(f"{len(self.core)} faces are too few for a batch of {batch_size}")
        self.scorers = [scorer, *followers]
        # float16 would need its loss scaled.
        self._mixed = scorer.precision == "bfloat16"
        # Of its own, so that what judges may be less than what is trained.
        self.trained = copy.deepcopy(scorer.recognizer)
        self.blend = blend
        self._first = copy.deepcopy(self._judging(scorer.recognizer).state_dict())
        self.temperature = temperature
        self._whole: Tensor | None = None  # of every face, however it is covered
        if head == "none":
            if not isinstance(scorer, EnrolledScorer):
                raise ValueError(
                    "head none takes the embeddings of enrolled faces as targets; here a "
                    f"{type(scorer).__name__} judges"
                )
            rows = scorer.targets.to(scorer.device)
            self._whole = scorer.gallery.embeddings[rows]
            self._people, self._person = scorer.gallery.weights, scorer.gallery.labels[rows]
        elif isinstance(scorer, EnrolledScorer):
            self.trained.head = scorer.gallery.head(head, m=margin).to(scorer.device)
        # Convolutions on a processor are a fifth faster forth and back with this memory layout.
        self.trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _freeze(self.trained.backbone, frozen)
        self.objective = Objective(self.trained) if self._whole is None else None
        self.optimizer = build_optimizer(self.trained, self.options)
        options = inner.options
        self._shown = Episodes(self.core, batch_size, options.observation, options.obs_size)
        # What a policy takes for best stays so while it is not trained.
        self._chosen = torch.empty((len(self.core), self.core.bits), dtype=torch.bool)
        self._known = torch.zeros(len(self.core), dtype=torch.bool)
        self.step = 0
        self.folder: Path | None = None

    def learn(
        self,
        steps: int,
        predict: Predict,
        after_step: Callable[[float], None] = lambda loss: None,
    ) -> float:
        """Train until `steps` steps have been made, counted from the start of training.

        Afterwards the scorer judges with the new weights, and what it scored before is forgotten.

        Args:
            steps: optimizer steps in all.
            predict: keep bits `(N, K)` of observations `(N, C, h, w)`.
            after_step: called with the loss of every step but the last; a state taken there
                continues exactly.

        Returns:
            Loss of the last step; NaN if there was none to make.

        Raises:
            TrainingDivergedError: the loss is no longer finite.
        """
        if self.step >= steps:
            return float("nan")
        self.trained.train()
        self._known[:] = False
        while self.step < steps:
            loss = self._update(predict)
            if self.step < steps:
                after_step(loss)
        self._judge()
        return loss

    def _judging(self, recognizer: Recognizer) -> nn.Module:
        """All of it that a scorer uses."""
        return recognizer if isinstance(self.scorers[0], MarginScorer) else recognizer.backbone

    def _judge(self) -> None:
        """Scorers take over what has been learned."""
        last = self._judging(self.trained).state_dict()
        self._judging(self.scorers[0].recognizer).load_state_dict(
            {
                name: torch.lerp(first, last[name], self.blend)
                if first.is_floating_point()
                else last[name]
                for name, first in self._first.items()
            }
        )
        for scorer in self.scorers:
            scorer.refresh()

    def _update(self, predict: Predict) -> float:
        epoch, place = divmod(self.step, self.epoch_steps)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.core))
        index = np.sort(order[place * self.batch_size : (place + 1) * self.batch_size])
        random = np.random.default_rng([self.seed, self.step, 1])
        chosen = random.random((self.batch_size, 1))
        if self.masks == "random":
            draws = [random.random((self.batch_size, n)) for n in (1, self.core.bits)]
            uniform = torch.from_numpy(np.concatenate([chosen, *draws], 1))
            masks = random_masks(uniform, self.mix, _MOST)
        else:
            masks = torch.ones((self.batch_size, self.core.bits), dtype=torch.bool)
            masked = torch.from_numpy(chosen[:, 0] < self.mix)
            if masked.any():
                masks[masked] = self._choose(index, predict)[masked]
        faces = torch.from_numpy(index)
        images, labels = self.core.apply(faces, masks), self.core.faces.labels[faces]
        torch.manual_seed(int(random.integers(2**62)))  # jitter, mirroring and dropout
        if self.jitter:
            uniform = torch.rand((len(images), JITTERED), device=images.device)
            images = jitter(images, uniform, self.jitter)
        loss = self._loss(images, faces, labels.to(self.trained.device))
        if not torch.isfinite(loss):
            self._stop({"index": faces, "masks": masks, "images": images, "labels": labels})
        over = self.decay_steps or self.step + 1
        rate = learning_rate(self.options, min(self.step, over), over)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _choose(self, index: np.ndarray, predict: Predict) -> Tensor:
        faces = torch.from_numpy(index)
        if self.masks != "greedy" or not self._known[faces].all():
            self._shown.begin(index)
            self._chosen[faces] = torch.as_tensor(predict(self._shown.observe())).bool()
            self._known[faces] = True
        return self._chosen[faces]

    def _loss(self, images: Tensor, faces: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._mixed):
            if self.objective is not None:
                return self.objective(images, labels)
            # Targets are of image and mirror image together, so either may be shown.
            if torch.rand(()) < 0.5:
                images = images.flip(-1)
            features = self.trained(images)
        # In float32 again: bfloat16 is too coarse for cosines over a temperature.
        embeddings = F.normalize(features.float())
        assert self._whole is not None
        loss = (1 - (embeddings * self._whole[faces]).sum(1)).mean()
        if self.temperature:
            logits = embeddings @ self._people.T / self.temperature
            # In units of cosines, like the first part.
            loss += self.temperature * F.cross_entropy(logits, self._person[faces])
        return loss

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
        self._judge()


def _freeze(backbone: nn.Module, count: int) -> None:
    layers = [m for m in backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if count >= len(layers):
        raise ValueError(f"frozen must be less than the backbone's {len(layers)} layers: {count}")
    for layer in layers[:count]:
        layer.requires_grad_(False)
