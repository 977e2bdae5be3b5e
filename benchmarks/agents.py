"""Agents against baselines and oracles on the embedded face world, several seeds.

Trains every seed, evaluates all policies on the same held-out faces, and reports how much of the
gap in margin-correct rate between keep-all and the exhaustive oracle each closes. The unit of
replication is the training seed.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from agents.baselines import ExhaustiveOracle, FixedMask, KeepAll
from agents.evaluation import METRICS, Result, evaluate
from benchmarks.common import RESULTS, environment, print_table, write_results
from recognizer.cli import parse_options
from train_agent import JUDGE, TrainOptions, make_env, train

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# 97.5 % quantile of Student's t with n - 1 degrees of freedom.
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


@dataclass
class Options:
    """Train agents on the embedded face world with several seeds and compare them with oracles."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Training seeds."""
    name: str = "agents"
    """Name of the files in benchmarks/results."""
    train: TrainOptions = field(default_factory=lambda: TrainOptions(eval_faces=400))
    """Options of every training."""


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m benchmarks.agents`."""
    options = parse_options(Options, argv)
    about = environment("gymnasium")
    env = make_env(options.train, options.train.eval_split, JUDGE)
    faces = len(env.unwrapped.core)  # type: ignore[attr-defined]
    indices = np.random.default_rng(0).permutation(faces)[: options.train.eval_faces]
    fixed = FixedMask.search(make_env(options.train, "train", JUDGE), faces=512)
    references = {
        policy.name: evaluate(policy, env, indices)
        for policy in (KeepAll(env), FixedMask(env, fixed.mask), ExhaustiveOracle(env, True))
    }
    runs = [run_seed(seed, options, env, indices) for seed in options.seeds]
    payload = {"environment": about, "options": asdict(options)} | summarise(references, runs)
    write_results(options.name, payload)
    draw(payload, RESULTS / f"{options.name}.png")
    report(payload)


def run_seed(seed: int, options: Options, env: Any, indices: np.ndarray) -> dict[str, Any]:
    """Train one seed and evaluate it; returns its result, learning curve and cost."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        agent = train(replace(options.train, seed=seed), Path(folder))
        seconds = time.monotonic() - start
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    curve = [json.loads(line) for line in lines]
    return {
        "seed": seed,
        "result": evaluate(agent, env, indices),
        "seconds": seconds,
        "recognizer_calls": agent.env.unwrapped.core.calls,
        "curve": [[row["step"], row["charts/episodic_return"]] for row in curve],
    }


def summarise(references: dict[str, Result], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of every policy and seed, and the share of the gap to the oracle that is closed."""
    metric = "margin-correct"
    keep, fixed, oracle = (result.mean(metric) for result in references.values())

    def closed(rate: float) -> float:
        return (rate - keep) / (oracle - keep)

    seeds = []
    for run in runs:
        result: Result = run.pop("result")
        rate = result.mean(metric)
        seeds.append(
            {**run, **{m: result.mean(m) for m in METRICS}, "gap_closed": closed(rate)}
            | {"beats_fixed_mask": rate > fixed}
        )
    gaps = np.array([seed["gap_closed"] for seed in seeds])
    # Student's t for the mean over seeds; with one seed there is no interval.
    half = T95.get(len(gaps), 1.96) * gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0
    return {
        "faces": len(references["keep-all"].labels),
        "references": {
            name: {m: {"mean": r.mean(m), "interval": r.interval(m)} for m in METRICS}
            | {"gap_closed": closed(r.mean(metric)), "recognizer_calls": r.calls}
            for name, r in references.items()
        },
        "seeds": seeds,
        "gap_closed": {"mean": gaps.mean(), "interval": [gaps.mean() - half, gaps.mean() + half]},
    }


def report(payload: dict[str, Any]) -> None:
    """Print one line a policy and seed."""
    rows = []
    for name, reference in payload["references"].items():
        means = [reference[m]["mean"] for m in METRICS]
        rows.append([name, *(f"{x:.3f}" for x in means), f"{reference['gap_closed']:.2f}", "", ""])
    for seed in payload["seeds"]:
        rows.append(
            [f"reinforce, seed {seed['seed']}", *(f"{seed[m]:.3f}" for m in METRICS)]
            + [f"{seed['gap_closed']:.2f}", seed["recognizer_calls"], f"{seed['seconds']:.0f}"]
        )
    print_table(["policy", *METRICS, "gap closed", "calls", "seconds"], rows)
    low, high = payload["gap_closed"]["interval"]
    print(
        f"\ngap closed, mean over seeds with 95 % interval: "
        f"{payload['gap_closed']['mean']:.2f} [{low:.2f}, {high:.2f}]; {payload['faces']} faces"
    )


def draw(payload: dict[str, Any], path: Path) -> None:
    """Learning curves, and the margin-correct rates that are compared."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for seed in payload["seeds"]:
        steps, reward = np.array(seed["curve"]).T
        window = min(50, len(reward))
        smooth = np.convolve(reward, np.ones(window) / window, "valid")
        left.plot(steps[window - 1 :], smooth, lw=1, label=f"seed {seed['seed']}")
    left.set(xlabel="faces decided on", ylabel="reward while exploring")
    left.legend(fontsize=8)
    names = [*payload["references"], *(f"seed {s['seed']}" for s in payload["seeds"])]
    rates = [r["margin-correct"]["mean"] for r in payload["references"].values()]
    rates += [s["margin-correct"] for s in payload["seeds"]]
    right.barh(names, rates, color=["tab:gray"] * len(payload["references"]) + ["tab:blue"] * 99)
    right.invert_yaxis()
    right.set(xlabel="margin-correct on held-out faces", xlim=(0, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
