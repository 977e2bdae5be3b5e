"""Train an agent in SARFace-v0, evaluate it beside the baselines, and write a run folder."""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import sarface_env  # noqa: F401  (registers SARFace-v0)
from agents.baselines import DropAll, ExhaustiveOracle, FixedMask, GreedyOracle, KeepAll, Random
from agents.evaluation import METRICS, Predicts, Result, evaluate, table
from agents.reinforce import Reinforce, ReinforceOptions
from agents.report import policy_figure
from recognizer.cli import parse_options
from recognizer.runs import MetricsLog, prepare_run, write_atomically, write_json
from sarface_env.options import EnvOptions


@dataclass
class TrainOptions:
    """Train an agent in SARFace-v0 and evaluate it beside the baselines on held-out faces.

    Without any option this is the demo: REINFORCE on the embedded face world, in a few minutes on
    two CPU cores. Everything ends up in the run folder: configuration, TensorBoard events,
    metrics.jsonl, the agent, results.json and figure.png. A killed run continues exactly where it
    was with --resume true.

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
    reinforce: ReinforceOptions = field(default_factory=ReinforceOptions)
    """The agent."""


# Options of the environment by their plain names.
SHORT = {"data": "env.dataset"} | {
    name: f"env.{name}"
    for name in EnvOptions.__dataclass_fields__
    if name not in TrainOptions.__dataclass_fields__
}


def main(argv: list[str] | None = None) -> None:
    """Command line of `train_agent.py`."""
    options = parse_options(TrainOptions, argv, SHORT)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        folder = prepare_run(options.run, options.resume, options.overwrite)
        check_config(options, folder)
        started = time.monotonic()
        agent = train(options, folder)
        trained = time.monotonic()
        results = compare(agent, options)
        report(results, agent, options, folder)
    except (OSError, ValueError) as error:
        sys.exit(f"train_agent: {error}")
    print(
        f"\nTraining took {trained - started:.0f} s, evaluation {time.monotonic() - trained:.0f} s."
        f"\nRun folder: {folder} (figure.png, results.json, agent.safetensors, "
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


def make_env(options: TrainOptions, split: str, reward: str | None = None) -> gym.vector.VectorEnv:
    """The environment of the options on one split, with another reward if one is given."""
    env_options = asdict(options.env) | {"split": split, "device": options.device}
    env_options["reward"] = reward or options.env.reward
    return gym.make_vec("SARFace-v0", num_envs=options.num_envs, **env_options)


def train(options: TrainOptions, folder: Path) -> Reinforce:
    """Train, or continue training, with a checkpoint every `save_every` updates."""
    env = make_env(options, "train")
    agent = Reinforce(env, options.reinforce, options.seed)
    checkpoint = folder / "checkpoint.pt"
    if options.resume and checkpoint.exists():
        agent.load_training_state(torch.load(checkpoint, weights_only=True))
    log = MetricsLog(folder, agent.steps)
    bar = tqdm(total=options.steps, initial=agent.steps, unit="step", desc="train")
    start, first, score = time.monotonic(), agent.steps, 0.0

    def after_update(step: int, metrics: dict[str, float]) -> None:
        nonlocal score
        score += 0.02 * (metrics["charts/episodic_return"] - score)
        rate = (step - first) / (time.monotonic() - start)
        log.log(step, {**metrics, "charts/SPS": rate})
        bar.update(min(step, options.steps) - bar.n)
        bar.set_postfix({"score": f"{score:+.3f}"}, refresh=False)
        if step // options.num_envs % options.save_every == 0:
            _save(agent, checkpoint)

    agent.learn(options.steps, after_update)
    bar.close()
    log.close()
    _save(agent, checkpoint)
    agent.save(folder / "agent.safetensors")
    return agent


def _save(agent: Reinforce, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(agent.training_state(), temporary)
    temporary.replace(path)


def compare(agent: Reinforce, options: TrainOptions) -> list[Result]:
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


def report(results: list[Result], agent: Reinforce, options: TrainOptions, folder: Path) -> None:
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
