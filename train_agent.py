"""Train an agent in SARFace-v0, evaluate it beside the baselines, and write a run folder."""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import sarface_env  # noqa: F401  (registers SARFace-v0)
from agents.agent import Agent, DivergedError
from agents.alternating import AlternatingOptions, Alternation
from agents.baselines import DropAll, ExhaustiveOracle, FixedMask, GreedyOracle, KeepAll, Random
from agents.evaluation import METRICS, Predicts, Result, evaluate, table
from agents.grpo import GrpoOptions
from agents.ppo_options import PpoOptions
from agents.registry import AGENTS, check_agent, load_agent, make_agent
from agents.reinforce import ReinforceOptions
from agents.report import policy_figure
from agents.sarface import SarfaceOptions
from recognizer.checkpoint import save_recognizer
from recognizer.cli import parse_options
from recognizer.loader import load_recognizer
from recognizer.recognizer import resolve_device
from recognizer.runs import MetricsLog, prepare_run, write_atomically, write_json
from recognizer.training import TrainingDivergedError
from sarface_env.env import SARFaceVectorEnv
from sarface_env.options import EnvOptions
from sarface_env.recognizer_updates import RecognizerUpdates
from sarface_env.scorers import MarginScorer


@dataclass
class TrainOptions:
    """Train an agent in SARFace-v0 and evaluate it beside the baselines on held-out faces.

    Without any option this is the demo: REINFORCE on the embedded face world, in a few minutes on
    two CPU cores. Everything ends up in the run folder: configuration, TensorBoard events,
    metrics.jsonl, the agent, results.json and figure.png. A killed run continues exactly where it
    was with --resume true.

    --agent chooses another agent; each has its options under its own name: --agent grpo
    --grpo.group 16. With --alternate true the recognizer is trained too, in turn with the agent.

    --data stands for --env.dataset, and every other option of the environment may be given without
    `env.` too: --data lfw/ --recognizer resnet29 --occlusion mask.
    """

    run: str = "runs/agent"
    """Run folder."""
    resume: bool = False
    """Continue the run of this folder."""
    overwrite: bool = False
    """Delete the run of this folder and start again."""
    seed: int = 0
    """Seed of the agent, of exploration and of the order of the faces."""
    steps: int = 18_432
    """Faces to decide on in training."""
    num_envs: int = 32
    """Faces decided on at once; one update each."""
    eval_faces: int = 200
    """Held-out faces that every policy is evaluated on."""
    eval_split: str = "test"
    """Where they come from: `val` while choosing options, `test` to report."""
    fixed_mask_faces: int = 256
    """Training faces that the best fixed mask is searched on."""
    save_every: int = 100
    """Updates between checkpoints."""
    device: str = "auto"
    """Where networks run, the environment's included: `auto`, `cpu`, `cuda`, ..."""
    env: EnvOptions = field(
        default_factory=lambda: EnvOptions(observation="regions+image", reward="flip+margin")
    )
    """The environment to train in."""
    agent: str = "reinforce"
    """Which agent: `reinforce`, `sarface` (the published rule), `grpo`, `ppo`, `maskable_ppo` (the
    last two from Stable-Baselines3), or one that another package adds."""
    reinforce: ReinforceOptions = field(default_factory=ReinforceOptions)
    """REINFORCE with a choice of baselines."""
    sarface: SarfaceOptions = field(default_factory=SarfaceOptions)
    """The update rule of SARFace as published."""
    grpo: GrpoOptions = field(default_factory=GrpoOptions)
    """Group relative policy optimization."""
    ppo: PpoOptions = field(default_factory=PpoOptions)
    """Stable-Baselines3's PPO."""
    maskable_ppo: PpoOptions = field(default_factory=PpoOptions)
    """sb3-contrib's MaskablePPO: regions that a face lacks are never dropped."""
    other: dict[str, Any] = field(default_factory=dict)
    """Options of an agent that another package adds: --agent mine --other '{"rate": 0.1}'."""
    alternate: bool = False
    """Train recognizer and agent in turn; `steps` then follows from `alternating`."""
    alternating: AlternatingOptions = field(default_factory=AlternatingOptions)
    """Alternating training. Its best pair is kept in the folder `best` of the run."""

    def __post_init__(self) -> None:
        check_agent(self.agent)
        if self.other and self.agent in AGENTS:
            raise ValueError(f"`other` is for agents of other packages; use --{self.agent}.NAME")


# Options of the environment by their plain names.
SHORT = {"data": "env.dataset"} | {
    name: f"env.{name}"
    for name in EnvOptions.__dataclass_fields__
    if name not in TrainOptions.__dataclass_fields__
}


def main(argv: list[str] | None = None) -> None:
    """Command line of `train_agent.py`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = parse_options(TrainOptions, argv, SHORT)
        folder = prepare_run(options.run, options.resume, options.overwrite)
        check_config(options, folder)
        started = time.monotonic()
        if options.alternate:
            options, agent = train_in_turn(options, folder)
        else:
            agent = train(options, folder)
        trained = time.monotonic()
        results = compare(agent, options)
        report(results, agent, options, folder)
    except (OSError, ValueError, DivergedError, TrainingDivergedError) as error:
        sys.exit(f"train_agent: {error}")
    agents = "best/ and last/, agent with recognizer" if options.alternate else "agent.safetensors"
    print(
        f"\nTraining took {trained - started:.0f} s, evaluation {time.monotonic() - trained:.0f} s."
        f"\nRun folder: {folder} (figure.png, results.json, {agents}, "
        f"`tensorboard --logdir {folder}`)"
    )


def check_config(options: TrainOptions, folder: Path) -> None:
    """Save the configuration of a new run; a resumed one must have the same.

    Raises:
        ValueError: the run was started with other options; the message names them.
    """
    free = (
        "run",
        "resume",
        "overwrite",
        "save_every",
        "eval_faces",
        "eval_split",
        "fixed_mask_faces",
    )
    ours = asdict(options)
    path = folder / "config.json"
    if options.resume and path.exists():
        saved = json.loads(path.read_text())
        different = [k for k in ours if k not in free and saved.get(k) != ours[k]]
        if different:
            raise ValueError(
                f"{folder} was started with other options: "
                + "; ".join(f"{k} {saved.get(k)}, now {ours[k]}" for k in different)
            )
    write_json(path, ours)


# What policies are compared by, whatever reward they learned from.
JUDGE = "flip"


def make_env(
    options: TrainOptions, split: str, reward: str | None = None, scorer: Any = None
) -> gym.vector.VectorEnv:
    """The environment of the options on one split, with another reward or judge if given."""
    env_options = asdict(options.env) | {"split": split, "device": options.device}
    env_options["reward"] = reward or options.env.reward
    if scorer is not None:
        # Not through `make_vec`, which would copy it.
        return SARFaceVectorEnv(options.num_envs, **env_options | {"recognizer": scorer})
    return gym.make_vec("SARFace-v0", num_envs=options.num_envs, **env_options)


def build_agent(options: TrainOptions, env: gym.vector.VectorEnv, folder: Path) -> Agent:
    """The agent of the options, untrained."""
    config = getattr(options, options.agent) if options.agent in AGENTS else options.other
    device = str(resolve_device(options.device))
    agent = make_agent(options.agent, env, config, options.seed, device)
    agent.folder = folder
    return agent


def train(options: TrainOptions, folder: Path) -> Agent:
    """Train, or continue training, with a checkpoint every `save_every` updates."""
    agent = build_agent(options, make_env(options, "train"), folder)
    checkpoint = folder / "checkpoint.pt"
    resumed = options.resume and checkpoint.exists()
    if resumed:
        agent.load_training_state(torch.load(checkpoint, weights_only=True))
    progress = Progress(options, folder, options.steps, agent.steps if resumed else None)

    def after_update(step: int, metrics: dict[str, float]) -> None:
        progress.log(step, metrics | {"charts/recognizer_calls": _calls(agent)})
        if progress.checkpoint_is_due(step):
            _save(agent.training_state(), checkpoint)

    agent.learn(options.steps, after_update)
    progress.close()
    _save(agent.training_state(), checkpoint)
    agent.save(folder / "agent.safetensors")
    return agent


def train_in_turn(options: TrainOptions, folder: Path) -> tuple[TrainOptions, Agent]:
    """Train agent and recognizer in turn, or continue to.

    Returns:
        The options with the best recognizer in place of the first one, and the best agent.
    """
    first = load_recognizer(options.env.recognizer, device=str(resolve_device(options.device)))
    # Of its own: what the process caches by name stays as it is.
    scorer = MarginScorer(first, resolve_device(options.device))
    env, schedule = make_env(options, "train", scorer=scorer), options.alternating
    agent = build_agent(options, env, folder)
    updates = RecognizerUpdates(
        env,  # type: ignore[arg-type]
        schedule.batch_size,
        schedule.mix,
        schedule.optimizer,
        schedule.lr,
        schedule.weight_decay,
        options.seed,
    )
    updates.folder = folder
    judge = make_env(options, "val", JUDGE, scorer)
    faces = len(judge.unwrapped.core)  # type: ignore[attr-defined]
    validation = np.random.default_rng(0).permutation(faces)[: schedule.val_faces]
    training = Alternation(
        agent,
        updates,
        lambda: evaluate(agent, judge, validation).mean("margin-correct"),
        schedule,
    )
    checkpoint = folder / "checkpoint.pt"
    resumed = options.resume and checkpoint.exists()
    if resumed:
        training.load_state_dict(torch.load(checkpoint, weights_only=True))
    per_round = schedule.policy_steps + schedule.recognizer_steps * schedule.batch_size
    done = training.faces if resumed else None
    progress = Progress(options, folder, schedule.rounds * per_round, done)

    def after_update(step: int, metrics: dict[str, float]) -> None:
        progress.log(training.faces, metrics | {"charts/recognizer_calls": _calls(agent)})
        if progress.checkpoint_is_due(step):
            _save(training.state_dict(), checkpoint)

    def after_phase(metrics: dict[str, float]) -> None:
        if metrics:
            progress.log(training.faces, metrics)
        _save(training.state_dict(), checkpoint)

    def keep(where: str) -> None:
        save_pair(agent, first, folder / where)

    training.run(after_update, after_phase, lambda: keep("best"))
    progress.close()
    keep("last")
    print(
        f"\nbest pair: {100 * training.best:.1f} % of {len(validation)} validation faces "
        f"margin-correct; {training.round} rounds, {training.stale} since then"
    )
    best = folder / "best"
    options = replace(
        options, env=replace(options.env, recognizer=str(best / "recognizer.safetensors"))
    )
    return options, load_agent(best / "agent.safetensors", env, str(agent.device))


def save_pair(agent: Agent, recognizer: Any, folder: Path) -> None:
    """Write agent and recognizer that belong together."""
    folder.mkdir(exist_ok=True)
    save_recognizer(recognizer, folder / "recognizer.safetensors", overwrite=True)
    agent.save(folder / "agent.safetensors")


class Progress:
    """Progress bar and metrics of a training.

    Args:
        options: of the run.
        folder: of the run.
        total: where the training ends.
        done: where it goes on; None at the start, when lines of an earlier attempt are dropped.
    """

    def __init__(self, options: TrainOptions, folder: Path, total: int, done: int | None):
        self.metrics = MetricsLog(folder, -1 if done is None else done)
        self.total, self.first = total, done or 0
        self.bar = tqdm(total=total, initial=self.first, unit="step", desc="train")
        self.start, self.score = time.monotonic(), 0.0
        self.every = options.save_every * options.num_envs
        self._saved = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics and move the bar."""
        if "charts/episodic_return" in metrics:
            self.score += 0.02 * (metrics["charts/episodic_return"] - self.score)
            rate = (step - self.first) / (time.monotonic() - self.start)
            metrics = metrics | {"charts/SPS": rate}
        self.metrics.log(step, metrics)
        self.bar.update(min(step, self.total) - self.bar.n)
        postfix = {"score": f"{self.score:+.3f}"}
        if "validation/margin_correct" in metrics:
            postfix["validation"] = f"{100 * metrics['validation/margin_correct']:.1f} %"
        self.bar.set_postfix(postfix, refresh=False)

    def checkpoint_is_due(self, step: int) -> bool:
        """Whether `save_every` updates have passed by this step of the agent."""
        due = step // self.every > self._saved
        self._saved = step // self.every
        return due

    def close(self) -> None:
        """Close the bar and the files."""
        self.bar.close()
        self.metrics.close()


def _calls(agent: Agent) -> int:
    """Images the recognizer has scored in training."""
    return agent.env.unwrapped.core.calls


def _save(state: dict[str, Any], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def compare(agent: Agent, options: TrainOptions) -> list[Result]:
    """Evaluate the agent and every baseline on the same held-out faces."""
    env = make_env(options, options.eval_split, JUDGE)
    faces = len(env.unwrapped.core)  # type: ignore[attr-defined]
    indices = np.random.default_rng(0).permutation(faces)[: options.eval_faces]
    fixed = FixedMask.search(
        make_env(options, "train", JUDGE), options.fixed_mask_faces, seed=options.seed
    )
    policies: list[Predicts] = [
        KeepAll(env),
        DropAll(env),
        Random(env, options.seed),
        FixedMask(env, fixed.mask),
        agent,
        GreedyOracle(env),
    ]
    # 2^K masks a face: minutes with the small recognizer of the embedded world, else hours.
    few_bits = env.unwrapped.single_action_space.n <= 16  # type: ignore[attr-defined]
    if few_bits and options.env.dataset == "faceworld":
        policies.append(ExhaustiveOracle(env, progress=True))
    return [evaluate(policy, env, indices) for policy in policies]


def report(results: list[Result], agent: Agent, options: TrainOptions, folder: Path) -> None:
    """Print the table; write results.json and figure.png."""
    print(f"\n{len(results[0].labels)} faces of the {options.eval_split} split")
    print("mean [95 % interval over identities]; all but the reward in percent\n")
    print(table(results))
    write_json(
        folder / "results.json",
        {
            "options": asdict(options),
            "policies": [
                {
                    "name": r.name,
                    "recognizer_calls": r.calls,
                    **{m: {"mean": r.mean(m), "interval": r.interval(m)} for m in METRICS},
                }
                for r in results
            ],
        },
    )
    env = make_env(options, options.eval_split)
    write_atomically(folder / "figure.png", policy_figure(env, results, agent.name))


if __name__ == "__main__":
    main()
