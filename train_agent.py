"""Train an agent in SARFace-v0, evaluate it beside the baselines, and write a run folder."""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import sarface_env  # noqa: F401  (registers SARFace-v0)
from agents.agent import Agent, DivergedError
from agents.alternating import AlternatingOptions, Alternation
from agents.baselines import DropAll, ExhaustiveOracle, FixedMask, GreedyOracle, KeepAll, Random
from agents.confident import second_looks
from agents.evaluation import METRICS, Predicts, Result, evaluate, table
from agents.gain import GainOptions
from agents.grpo import GrpoOptions
from agents.ppo_options import PpoOptions
from agents.preference import PreferenceOptions
from agents.registry import AGENTS, agent_class, check_agent, load_agent, make_agent
from agents.reinforce import ReinforceOptions
from agents.report import policy_figure
from agents.sarface import SarfaceOptions
from agents.validation import Validation
from agents.value import ValueOptions
from recognizer.checkpoint import save_recognizer
from recognizer.cli import parse_options
from recognizer.loader import load_recognizer
from recognizer.recognizer import resolve_device
from recognizer.runs import Progress, prepare_run, write_atomically, write_json
from recognizer.training import TrainingDivergedError
from sarface_env.env import SARFaceVectorEnv
from sarface_env.options import EnvOptions, own_scorer
from sarface_env.recognizer_updates import RecognizerUpdates


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
    steps: int = 8_192
    """Faces to decide on in training."""
    num_envs: int = 32
    """Faces decided on at once; one update each."""
    eval_faces: int = 200
    """Held-out faces that every policy is evaluated on."""
    eval_split: str = "test"
    """Where they come from: `val` while choosing options, `test` to report."""
    val_faces: int = 400
    """Validation faces that the agent is scored on while it trains, without exploration; the agent
    that is best by `best_by` is kept in the folder `best` of the run."""
    best_by: Literal["margin-correct", "reward"] = "margin-correct"
    """What is best: the largest share of validation faces margin-correct, or the largest mean
    reward. With a reward such as `contrast` the latter is surer where few faces change sides.
    Alternating training always goes by the former."""
    validate_every: int = 1024
    """Faces decided on between two such scores; alternating training has one a round."""
    fixed_mask_faces: int = 256
    """Training faces that the best fixed mask is searched on."""
    save_every: int = 100
    """Updates between checkpoints."""
    device: str = "auto"
    """Where networks run, the environment's included: `auto`, `cpu`, `cuda`, ..."""
    env: EnvOptions = field(
        default_factory=lambda: EnvOptions(observation="regions+image", reward="margin")
    )
    """The environment to train in."""
    agent: str = "reinforce"
    """Which agent: `reinforce`, `sarface` (the published rule), `grpo`, `gain` (regression of what
    dropping regions gains), `value` (of what whole masks gain), `preference` (comparisons of masks
    along a hill climb), `ppo`, `maskable_ppo` (the last two from Stable-Baselines3), or one that
    another package adds."""
    reinforce: ReinforceOptions = field(default_factory=ReinforceOptions)
    """REINFORCE with a choice of baselines."""
    sarface: SarfaceOptions = field(default_factory=SarfaceOptions)
    """The update rule of SARFace as published."""
    grpo: GrpoOptions = field(default_factory=GrpoOptions)
    """Group relative policy optimization."""
    gain: GainOptions = field(default_factory=GainOptions)
    """Regression of what dropping each region gains."""
    value: ValueOptions = field(default_factory=ValueOptions)
    """Regression of what whole masks gain."""
    preference: PreferenceOptions = field(default_factory=PreferenceOptions)
    """Comparisons of masks along a hill climb."""
    ppo: PpoOptions = field(default_factory=PpoOptions)
    """Stable-Baselines3's PPO."""
    maskable_ppo: PpoOptions = field(default_factory=PpoOptions)
    """sb3-contrib's MaskablePPO: regions that a face lacks are never dropped."""
    start: str | None = None
    """Agent to start from instead of a new one: the file agent.safetensors of a run of the same
    agent with the same regions, observation and network."""
    other: dict[str, Any] = field(default_factory=dict)
    """Options of an agent that another package adds: --agent mine --other '{"rate": 0.1}'."""
    alternate: bool = False
    """Train recognizer and agent in turn; `steps` then follows from `alternating`."""
    alternating: AlternatingOptions = field(default_factory=AlternatingOptions)
    """Alternating training. `best` then holds the best pair."""

    def __post_init__(self) -> None:
        check_agent(self.agent)
        for name in ("val_faces", "validate_every", "save_every", "num_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
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
    agents = "agents with recognizers in" if options.alternate else "agents in"
    print(
        f"\nTraining took {trained - started:.0f} s, evaluation {time.monotonic() - trained:.0f} s."
        f"\nRun folder: {folder} (figure.png, results.json, {agents} best/ "
        f"and last/, `tensorboard --logdir {folder}`)"
    )


def check_config(options: TrainOptions, folder: Path) -> None:
    """Save the configuration of a new run; a resumed one must have the same.

    Raises:
        ValueError: the run was started with other options; the message names them.
    """
    free = {"run", "resume", "overwrite", "save_every", "eval_faces", "eval_split"}
    free |= {"fixed_mask_faces", *AGENTS} - {options.agent}
    free |= set() if options.alternate else {"alternating"}
    ours = asdict(options)
    path = folder / "config.json"
    if options.resume and path.exists():
        # What the run is older than was as it is now by default.
        saved = _filled(json.loads(path.read_text()), asdict(TrainOptions()))
        different = [k for k in ours if k not in free and saved.get(k) != ours[k]]
        if different:
            raise ValueError(
                f"{folder} was started with other options: "
                + "; ".join(f"{k} {saved.get(k)}, now {ours[k]}" for k in different)
            )
    write_json(path, ours)


def _filled(saved: Any, defaults: Any) -> Any:
    """What was saved, with the defaults of what was not, at any depth."""
    if not isinstance(saved, dict) or not isinstance(defaults, dict):
        return saved
    return defaults | {key: _filled(value, defaults.get(key)) for key, value in saved.items()}


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
    """The agent of the options, untrained or with the weights to start from.

    Raises:
        ValueError: those are another agent's, or of another environment or network.
    """
    config = getattr(options, options.agent) if options.agent in AGENTS else options.other
    device = str(resolve_device(options.device))
    agent = make_agent(options.agent, env, config, options.seed, device)
    if options.start is not None:
        trained = agent_class(options.agent).load(options.start, env, device)
        try:
            agent.policy.load_state_dict(trained.policy.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"{options.start} has another network; give its options (width, depth, ...), "
                f"which are {trained.options}"
            ) from error
    agent.folder = folder
    return agent


def train(options: TrainOptions, folder: Path) -> Agent:
    """Train, or continue training, with checkpoints.

    Returns:
        The agent that was the best on validation faces.
    """
    agent = build_agent(options, make_env(options, "train"), folder)
    reward = options.env.reward if options.best_by == "reward" else JUDGE
    validation = Validation(make_env(options, "val", reward), options.val_faces, options.best_by)
    checkpoint = folder / "checkpoint.pt"
    validated, done, seconds = -1, None, [0.0, 0.0]
    if options.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        agent.load_training_state(state["agent"])
        validation.best, validated, seconds = (state[k] for k in ("best", "validated", "seconds"))
        done = agent.steps
    progress = Progress(folder, options.steps, done, seconds)
    due = Due(options.save_every * options.num_envs, done)

    def save() -> None:
        state = {"agent": agent.training_state(), "best": validation.best, "validated": validated}
        _save(state | {"seconds": progress.seconds}, checkpoint)

    def validate() -> None:
        nonlocal validated
        validated = agent.steps
        with progress.paused():
            metrics = validation(agent) | {"charts/recognizer_calls": _calls(agent)}
            if validation.improved():
                save_agent(agent, folder / "best")
        progress.log(validated, metrics)
        progress.metrics.picture("kept", validated, validation.picture())

    def after_update(step: int, metrics: dict[str, float]) -> None:
        progress.log(step, metrics | {"charts/recognizer_calls": _calls(agent)})
        if step // options.validate_every > validated // options.validate_every:
            validate()
        if due(step):
            save()

    if done is None:
        validate()
    agent.learn(options.steps, after_update)
    if validated < agent.steps:
        validate()
    progress.close()
    save()
    save_agent(agent, folder / "last")
    return load_agent(folder / "best" / "agent.safetensors", agent.env, str(agent.device))


def train_in_turn(options: TrainOptions, folder: Path) -> tuple[TrainOptions, Agent]:
    """Train agent and recognizer in turn, or continue to.

    Returns:
        The options with the best recognizer in place of the first one, and the best agent.
    """
    first = load_recognizer(options.env.recognizer, device=str(resolve_device(options.device)))
    # Of its own: what the process caches by name stays as it is.
    base = replace(options.env, device=options.device)
    scorer, judge = (own_scorer(replace(base, split=split), first) for split in ("train", "val"))
    env, schedule = make_env(options, "train", scorer=scorer), options.alternating
    agent = build_agent(options, env, folder)
    updates = RecognizerUpdates(
        env,  # type: ignore[arg-type]
        batch_size=schedule.batch_size,
        mix=schedule.mix,
        masks=schedule.masks,
        optimizer=schedule.optimizer,
        lr=schedule.lr,
        decay_steps=schedule.rounds * schedule.recognizer_steps if schedule.decay else None,
        warmup=schedule.warmup,
        weight_decay=schedule.weight_decay,
        seed=options.seed,
        head=schedule.head,
        margin=schedule.margin,
        temperature=schedule.temperature,
        frozen=schedule.frozen,
        jitter=schedule.jitter,
        blend=schedule.blend,
        followers=[judge],
    )
    updates.folder = folder
    validation = Validation(make_env(options, "val", JUDGE, judge), options.val_faces)
    training = Alternation(agent, updates, lambda: validation(agent), schedule)
    checkpoint = folder / "checkpoint.pt"
    done, seconds = None, [0.0, 0.0]
    if options.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        training.load_state_dict(state["training"])
        done, seconds = training.faces, state["seconds"]
    per_round = schedule.policy_steps + schedule.recognizer_steps * schedule.batch_size
    progress = Progress(folder, schedule.rounds * per_round, done, seconds)
    due = Due(options.save_every * options.num_envs, done)

    def save() -> None:
        _save({"training": training.state_dict(), "seconds": progress.seconds}, checkpoint)

    def after_update(_: int, metrics: dict[str, float]) -> None:
        progress.log(training.faces, metrics | {"charts/recognizer_calls": _calls(agent)})
        if due(training.faces):
            save()

    def after_phase(metrics: dict[str, float]) -> None:
        if metrics:
            progress.log(training.faces, metrics | {"charts/recognizer_calls": _calls(agent)})
            progress.metrics.picture("kept", training.faces, validation.picture())
        save()

    def keep(where: str) -> None:
        save_agent(agent, folder / where)
        save_recognizer(first, folder / where / "recognizer.safetensors", overwrite=True)

    training.run(after_update, after_phase, lambda: keep("best"))
    progress.close()
    keep("last")
    print(
        f"\nbest pair: {100 * training.best:.1f} % of {len(validation.indices)} validation faces "
        f"margin-correct; {training.round} rounds, {training.stale} since then"
    )
    best = folder / "best"
    options = replace(
        options, env=replace(options.env, recognizer=str(best / "recognizer.safetensors"))
    )
    return options, load_agent(best / "agent.safetensors", env, str(agent.device))


def save_agent(agent: Agent, folder: Path) -> None:
    """Write an agent into a folder, which is made if need be."""
    folder.mkdir(exist_ok=True)
    agent.save(folder / "agent.safetensors")


class Due:
    """Whether another `every` steps have passed, counting from step `done`."""

    def __init__(self, every: int, done: int | None):
        self.every, self.passed = every, (done or 0) // every

    def __call__(self, step: int) -> bool:
        due = step // self.every > self.passed
        self.passed = step // self.every
        return due


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
    # Searches among many regions take minutes with a large recognizer.
    with tqdm(desc="evaluating", unit="policy", postfix="searching the best fixed mask") as bar:
        fixed = FixedMask.search(
            make_env(options, "train", JUDGE), options.fixed_mask_faces, seed=options.seed
        )
        policies: list[Predicts] = [
            KeepAll(env),
            DropAll(env),
            Random(env, options.seed),
            FixedMask(env, fixed.mask),
            agent,
            *second_looks(env, agent),
            GreedyOracle(env),
        ]
        # 2^K masks a face: minutes with the small recognizer of the embedded world, else hours.
        few_bits = env.unwrapped.single_action_space.n <= 16  # type: ignore[attr-defined]
        if few_bits and options.env.dataset == "faceworld":
            policies.append(ExhaustiveOracle(env, progress=True))
        bar.reset(len(policies))
        results = []
        for policy in policies:
            bar.set_postfix_str(getattr(policy, "name", "policy"))
            results.append(evaluate(policy, env, indices))
            bar.update()
    return results


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
