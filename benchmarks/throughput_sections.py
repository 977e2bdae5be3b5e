"""The measurements of `benchmarks.throughput`, one function a section or group of sections."""

import itertools
import multiprocessing
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agents.registry import AGENTS, make_agent
from benchmarks.throughput_setup import Eager, Setup, make_setup, plain_process
from benchmarks.timing import interleaved
from sarface_env.env import SARFaceEnv, SARFaceVectorEnv
from sarface_env.scorers import MarginScorer

Results = dict[str, Any]


def random_steps(env: Any, seed: int = 0) -> Callable[[], Any]:
    """Reset an environment; returns what steps it with other random masks at every call.

    The masks are drawn beforehand. The environment forgets their scores now and then, so that it
    finds next to none of them when they come again.
    """
    env.reset(seed=seed)
    shape = (64, env.num_envs, env.single_action_space.n)
    masks = itertools.cycle(np.random.default_rng(seed).integers(0, 2, shape, dtype=np.int8))
    calls, core = itertools.count(1), getattr(env, "core", None)

    def step() -> Any:
        if core is not None and next(calls) % 16 == 0:
            core.forget_masks()
        return env.step(next(masks))

    return step


def rates(
    setup: Setup,
    batches: list[int],
    sections: set[int],
    seconds: float,
    sync_up_to: int,
    async_up_to: int,
    all_up_to: int,
    rounds: int,
) -> Results:
    """Sections 1 to 3: images or faces a second, and their ratio to the eager forward.

    Args:
        setup: recognizer and faces.
        batches: batch sizes and numbers of environments.
        sections: 1 forward, 2 vector environment, 3 Gymnasium's over single environments.
        seconds: for each batch size.
        sync_up_to: largest number of environments of SyncVectorEnv.
        async_up_to: largest of AsyncVectorEnv, one process each; only the embedded recognizer.
        all_up_to: largest batch of all contenders; of larger ones only the eager forward, the
            engine and the vector environment are measured.
        rounds: at least so many of each.
    """
    results: Results = {}
    recognizer = setup.scorer.recognizer
    eager, last = Eager(recognizer), Eager(recognizer, channels_last=True)
    half = replace(setup, scorer=MarginScorer(recognizer, "cpu", precision="bfloat16"))
    with plain_process(setup.name) as plain:
        for n in batches:
            images = setup.batch(n)
            contenders: dict[str, tuple[Callable[[], Any], int]] = {
                "eager": (partial(eager, images), n)
            }
            every = n <= all_up_to
            if 1 in sections:
                contenders["engine"] = (partial(setup.scorer._engine, images), n)
            if 1 in sections and every:
                contenders["eager, system's allocator"] = (partial(plain, n), n)
                contenders["channels-last"] = (partial(last, images), n)
                contenders["engine, bfloat16"] = (partial(half.scorer._engine, images), n)
            with ExitStack() as stack:
                if 2 in sections:
                    contenders["vector step"] = (random_steps(setup.vector(n)), n)
                    if every:
                        contenders["vector step, bfloat16"] = (random_steps(half.vector(n)), n)
                if 3 in sections and every and n <= sync_up_to:
                    one_by_one = gym.vector.SyncVectorEnv(
                        [setup.single] * n, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
                    )
                    contenders["SyncVectorEnv"] = (random_steps(one_by_one), n)
                if 3 in sections and n <= async_up_to and setup.name == "faceworld":
                    processes = gym.vector.AsyncVectorEnv(
                        [_single_in_a_process] * n,
                        context="spawn",
                        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
                    )
                    stack.callback(processes.close)
                    contenders["AsyncVectorEnv"] = (random_steps(processes), n)
                timings = interleaved(contenders, seconds, rounds)
            results[str(n)] = {k: t.summary(timings["eager"]) for k, t in timings.items()}
    return results


def _single_in_a_process() -> SARFaceEnv:
    if multiprocessing.parent_process() is not None:  # one is also made here, for its spaces
        torch.set_num_threads(1)
    return make_setup("faceworld").single()


def agreement(setup: Setup, faces: int) -> Results:
    """Scores through the environment against the eager recognizer's on the same masked images."""
    rows = torch.arange(min(faces, len(setup.faces)))
    rng = np.random.default_rng(0)
    recognizer, labels = setup.scorer.recognizer, setup.faces.labels[rows]
    results: Results = {"faces": len(rows)}
    masks = torch.from_numpy(rng.random((len(rows), setup.vector(1).core.bits)) < 0.5)
    for precision in ("float32", "bfloat16"):
        scorer = MarginScorer(recognizer, "cpu", precision=precision)
        core = SARFaceVectorEnv(1, dataset=setup.faces, recognizer=scorer).core
        ours = core.evaluate(rows, masks).masked
        with torch.no_grad():
            embedding, norm = recognizer.embed(core.apply(rows, masks))
            cosines = scorer._cosines(embedding, labels)
            eager = scorer._judge(cosines, norm.flatten(), labels)
        results[precision] = {
            "flags that differ": int((ours.correct != eager.correct).sum())
            + int((ours.margin_correct != eager.margin_correct).sum()),
            "largest difference of margins": float((ours.margin - eager.margin).abs().max()),
        }
    return results


def rollouts(setup: Setup, num_envs: int, seconds: float, n_steps: int = 2) -> Results:
    """Section 4: faces a second of Stable-Baselines3's PPO collecting rollouts.

    Its policy is the library's own perceptron on 12 by 12 observations, so that the environment is
    what is measured.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from agents.sb3 import BatchedVecEnv

    def collector(env: Any) -> Callable[[], Any]:
        model = PPO(
            "MlpPolicy", env, n_steps=n_steps, batch_size=num_envs * n_steps, device="cpu", seed=0
        )
        _, callback = model._setup_learn(10**9)
        inner: Any = model.env
        return lambda: model.collect_rollouts(inner, callback, model.rollout_buffer, n_steps)

    def single() -> SARFaceEnv:
        return SARFaceEnv(obs_size=12, dataset=setup.faces, recognizer=setup.scorer)

    work = num_envs * n_steps
    timings = interleaved(
        {
            "adapter": (collector(BatchedVecEnv(setup.vector(num_envs, obs_size=12))), work),
            "DummyVecEnv": (
                collector(DummyVecEnv([single] * num_envs)),
                work,
            ),
        },
        seconds,
    )
    return {k: t.summary(timings["DummyVecEnv"]) for k, t in timings.items()}


def group_scoring(setup: Setup, faces: int, num_envs: int = 32) -> Results:
    """Section 5: masks that GRPO has scored a second, beside images the engine embeds a second.

    In the first and in the last tenth of the training the engine embeds as many images as there
    were masks right after each group was scored; ratios are taken within these pairs.
    """
    env = setup.vector(num_envs, observation="regions+image", reward="flip+margin")
    agent = make_agent("grpo", env, None, 0)
    masks = num_envs * agent.options.group
    images, updates = setup.batch(masks), -(-faces // num_envs)
    tenth = max(1, updates // 10)
    laps: list[tuple[float, float, int]] = []
    evaluate = env.evaluate

    def timed(indices: Any, masks: Any) -> Any:
        start, before = time.perf_counter(), env.core.calls
        outcome = evaluate(indices, masks)
        taken, forward = time.perf_counter() - start, float("nan")
        if not tenth <= len(laps) < updates - tenth:
            start = time.perf_counter()
            setup.scorer._engine(images)
            forward = time.perf_counter() - start
        laps.append((taken, forward, env.core.calls - before))
        return outcome

    env.evaluate = timed  # type: ignore[method-assign]
    agent.learn(faces)
    results: Results = {"faces": faces, "group": agent.options.group}
    for name, part in (("first tenth", laps[:tenth]), ("last tenth", laps[-tenth:])):
        seconds, forward, scored = np.array(part).T
        results[name] = {
            "masks_per_second": masks / float(np.median(seconds)),
            "engine_per_second": masks / float(np.median(forward)),
            "ratio": float(np.median(forward / seconds)),
            "scored": float(scored.mean() / masks),
        }
    return results


def training_steps(setup: Setup, seconds: float, num_envs: int = 32) -> Results:
    """Section 6: milliseconds a face of every agent's training, by where they go.

    Args:
        setup: recognizer and faces.
        seconds: for each agent.
        num_envs: faces a step of the environment.
    """
    return {name: _training_step(setup, name, seconds, num_envs) for name in AGENTS}


class _EnoughError(Exception):
    """Ends a training whose time has been taken."""


def _training_step(setup: Setup, name: str, seconds: float, num_envs: int) -> Results:
    env = setup.vector(num_envs, observation="regions+image", reward="flip+margin")
    agent = make_agent(name, env, None, 0)
    laps: list[dict[str, float]] = []
    spent: dict[str, float] = defaultdict(float)
    inside = [False]
    forwards = [0]
    # Stable-Baselines3 evaluates by another method when it updates; our learners call the policy
    # first to act and then once an epoch.
    library = hasattr(agent, "model")

    def watch(method: Callable, part: str) -> Callable:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            forwards[0] += part == "policy forward"
            if inside[0] or (part == "policy forward" and forwards[0] > 1 and not library):
                return method(*args, **kwargs)
            inside[0] = True
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - start
                inside[0] = False

        return timed

    for method in ("step", "reset", "evaluate"):
        setattr(env, method, watch(getattr(env, method), "environment"))
    agent.policy.forward = watch(agent.policy.forward, "policy forward")
    begin = time.perf_counter()
    marks = [begin, 0]

    def after_update(step: int, _: dict[str, float]) -> None:
        now = time.perf_counter()
        faces, total = step - marks[1], now - marks[0]
        parts = dict(spent) | {"update": total - sum(spent.values())}
        laps.append({part: 1e3 * seconds / faces for part, seconds in parts.items()})
        if len(laps) >= 4 and now - begin > seconds:
            raise _EnoughError
        spent.clear()
        forwards[0] = 0
        marks[:] = [now, step]

    with suppress(_EnoughError):
        agent.learn(100_000, after_update)
    warm = 2  # the first updates warm up
    parts = ("environment", "policy forward", "update")
    split = {part: float(np.median([lap.get(part, 0) for lap in laps[warm:]])) for part in parts}
    return split | {"faces_per_second": 1e3 / sum(split.values()), "updates": len(laps) - warm}


@contextmanager
def _timed(owner: Any, method: str, spent: list[float]) -> Iterator[None]:
    inner = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[-1] += time.perf_counter() - start

    setattr(owner, method, timed)
    try:
        yield
    finally:
        delattr(owner, method)


def step_parts(setup: Setup, batches: list[int], seconds: float) -> Results:
    """Section 7: microseconds a face of partitioning, and of the parts of a vector step."""
    results: Results = {}
    for n in batches:
        env = setup.vector(n)
        core, step = env.core, random_steps(env)
        spent: dict[str, list[float]] = {"recognizer": [], "masking": [], "observations": []}
        total: list[float] = []
        with ExitStack() as stack:
            for part, owner, method in (
                ("recognizer", core.scorer, "score"),
                ("masking", core, "_apply"),
                ("observations", env.episodes, "observe"),
            ):
                spent[part].append(0.0)
                stack.enter_context(_timed(owner, method, spent[part]))
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds or len(total) < 7:
                for times in spent.values():
                    times.append(0.0)
                start = time.perf_counter()
                step()
                total.append(time.perf_counter() - start)
        skip = 2  # the first steps warm up
        micro = {part: 1e6 / n * float(np.median(v[1 + skip :])) for part, v in spent.items()}
        whole = 1e6 / n * float(np.median(total[skip:]))
        micro["rest"] = whole - sum(micro.values())
        labels = setup.faces.parsing
        assert labels is not None
        rows = torch.from_numpy(np.random.default_rng(0).integers(0, len(labels), n))
        cutting = {"cut": (partial(core.partition, labels[rows]), n)}
        cut = interleaved(cutting, seconds / 4)["cut"]
        results[str(n)] = {
            "step": whole,
            "partition, once a face": 1e6 / cut.rate,
            **micro,
        }
    return results


def quiet() -> None:
    """No warnings of libraries between the lines of a table."""
    warnings.filterwarnings("ignore", category=UserWarning)
