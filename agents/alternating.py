"""Rounds in which agent and recognizer are trained in turn."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from agents.agent import Agent, Callback


@dataclass
class AlternatingOptions:
    """Options of alternating training.

    Either of `policy_steps` and `recognizer_steps` may be 0: then only the other is trained.
    """

    rounds: int = 10
    """Rounds: first the agent is trained with the recognizer frozen, then the recognizer on faces
    masked by the agent."""
    policy_steps: int = 2048
    """Faces that the agent decides on in a round."""
    recognizer_steps: int = 40
    """Optimizer steps of the recognizer in a round."""
    batch_size: int = 64
    """Faces in each of them."""
    mix: float = 0.5
    """Share of those faces that are masked; the others are shown in full."""
    masks: Literal["agent", "greedy", "random"] = "agent"
    """Who masks them: the agent, sampling; the agent, by what it takes for best (`greedy`), as for
    `preference`, whose probabilities all lie near one half; or chance. Chance drops a share of a
    face's regions that is drawn for each face between 0 and 0.6."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimizer of the recognizer: SGD with momentum 0.9, or AdamW."""
    lr: float = 1e-4
    """Its learning rate."""
    decay: bool = False
    """Let the learning rate fall to zero along a cosine instead of keeping it constant."""
    warmup: int = 0
    """Steps in which the learning rate rises to that. AdamW's first steps are as long as any, and
    can undo more of what the recognizer knows than a short training mends."""
    weight_decay: float = 5e-4
    """Its weight decay, of matrices and convolutions."""
    frozen: int = 0
    """So many of its first layers stay as they are: layers are convolutions and dense ones. The
    first ones see the largest maps, and take much of a step's time."""
    jitter: float = 0.0
    """Turn, scale, shift and relight those faces at random, by up to 5 degrees, 6 %, 2.5 % of the
    side and 20 % times this: few photographs last longer."""
    blend: float = 1.0
    """Judge by weights that lie so much of the way from the recognizer's first ones to the trained
    ones. Less than 1 keeps more of what it knew, and often holds for more people (Wortsman et al.,
    2022)."""
    head: Literal["cosface", "arcface", "adaface", "none"] = "cosface"
    """Margin head for people who are enrolled from photographs: what it starts from are the means
    of their images. With `none` there are no classes; the recognizer then learns to make of a
    masked face what it first made of the whole, uncovered one."""
    temperature: float = 0.0
    """Without a head: tell people apart as well, by a softmax of the cosines to what they are known
    by, over this temperature. With 0, being near what was made of the whole face is all."""
    margin: float = 0.1
    """Margin of that head. Smaller than in training from scratch, because the recognizer knows
    these people already, by cosines that may lie close together."""
    patience: int = 0
    """Stop after this many rounds without a better validation score; 0 never does."""

    def __post_init__(self) -> None:
        for name, least in (
            ("rounds", 1),
            ("policy_steps", 0),
            ("recognizer_steps", 0),
            ("batch_size", 1),
            ("warmup", 0),
            ("frozen", 0),
            ("patience", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("temperature", "jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.temperature and self.head != "none":
            raise ValueError(f"temperature goes with head none; head {self.head} has its own scale")


class Updates(Protocol):
    """What trains the recognizer; `sarface_env.recognizer_updates.RecognizerUpdates` does."""

    step: int
    batch_size: int

    def learn(
        self,
        steps: int,
        predict: Callable[[np.ndarray], np.ndarray],
        after_step: Callable[[float], None],
        /,
    ) -> float:
        """Train until `steps` steps have been made in all; returns the last one's loss.

        `after_step` is called with the loss of every step before that.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that continuing exactly needs."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict()`."""
        ...


class Alternation:
    """Trains an agent and a recognizer in turn, and remembers the best score.

    Everything is counted from the start of training, so that a state taken at any update of the
    agent or after any phase continues exactly.

    Args:
        agent: sees the environment whose recognizer is trained.
        updates: train that recognizer.
        validate: metrics of the pair as it is; `validation/margin_correct` is its score.
        options: the schedule.

    Attributes:
        round: rounds that are over.
        best: the best score.
        stale: rounds since.
    """

    def __init__(
        self,
        agent: Agent,
        updates: Updates,
        validate: Callable[[], dict[str, float]],
        options: AlternatingOptions,
    ):
        self.agent, self.updates, self.validate = agent, updates, validate
        self.options = options
        self.round, self.best, self.stale = 0, -math.inf, 0

    @property
    def faces(self) -> int:
        """Faces that the agent decided on and the recognizer was trained on."""
        return self.agent.steps + self.updates.step * self.updates.batch_size

    def run(
        self,
        after_update: Callback,
        after_phase: Callable[[dict[str, float]], None],
        keep_best: Callable[[], None],
    ) -> None:
        """Train from wherever the training is to the end.

        Args:
            after_update: called after every update of the agent, as by `Agent.learn`, and after
                every step of the recognizer but the last of a phase, with the number of `faces`.
            after_phase: called after each of the two phases of a round, with its metrics.
            keep_best: called when the score is the best so far, before `after_phase`.
        """
        options = self.options
        if self.round == 0 and self.best == -math.inf:
            after_phase(self._score(keep_best))
        while self.round < options.rounds and not self._stale():
            target = (self.round + 1) * options.policy_steps
            if self.agent.steps < target:
                self.agent.learn(target, after_update, options.rounds * options.policy_steps)
                after_phase({})
            target = (self.round + 1) * options.recognizer_steps
            loss = self.updates.learn(
                target,
                lambda obs: self.agent.predict(obs, deterministic=options.masks == "greedy")[0],
                lambda loss: after_update(self.faces, {"losses/recognizer": loss}),
            )
            self.round += 1
            metrics = self._score(keep_best)
            after_phase(metrics if math.isnan(loss) else {"losses/recognizer": loss, **metrics})

    def _stale(self) -> bool:
        return 0 < self.options.patience <= self.stale

    def _score(self, keep_best: Callable[[], None]) -> dict[str, float]:
        metrics = self.validate()
        score = metrics["validation/margin_correct"]
        self.stale += 1
        if score > self.best:
            self.best, self.stale = score, 0
            keep_best()
        return metrics | {"validation/round": float(self.round)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that continuing exactly needs, loadable with `weights_only=True`."""
        return {
            "round": self.round,
            "best": self.best,
            "stale": self.stale,
            "agent": self.agent.training_state(),
            "recognizer": self.updates.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.round, self.best, self.stale = state["round"], state["best"], state["stale"]
        self.updates.load_state_dict(state["recognizer"])
        self.agent.load_training_state(state["agent"])
