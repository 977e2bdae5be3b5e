"""Agents x seeds on the embedded face world: learning curves, gap to the oracle, regret.

Every training is stored as it ends in the folder `runs`; the table, the JSON file and the figure
are made of what is there once all have ended. Several processes may divide the trainings:
`--part 1/2` and `--part 2/2`, and then the command without `--part`.
"""

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks import common
from benchmarks.common import environment, print_table, write_results
from benchmarks.seeds import first_reached, interval, iqm, summary
from benchmarks.trainings import (
    Variant,
    further_looks,
    references,
    run_folder,
    share,
    stored,
    trained,
)
from recognizer.cli import parse_options
from train_agent import TrainOptions

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PUBLISHED = "sarface"
# Options are the best of `benchmarks.tuning`. Agents that score few masks a face, or take few
# gradient steps, see more faces; each is trained for about a minute of one core or more.
VARIANTS = {
    "sarface": Variant("sarface", reward="flip_plain", length=8),
    "reinforce": Variant("reinforce", reward="margin", length=8 / 3),
    "reinforce, per bit": Variant(
        "reinforce",
        {"baseline": "per_bit", "entropy": 0.15, "epochs": 4, "replay": 0},
        reward="flip+margin",
        length=2,
    ),
    "grpo": Variant("grpo", reward="margin", length=2),
    "gain": Variant(
        "gain",
        {"masks": 12, "around": 0.7, "augment": True},
        reward="margin",
        length=8 / 3,
    ),
    "ppo": Variant("ppo", reward="flip+margin", length=3),
    "maskable_ppo": Variant("maskable_ppo", reward="flip+margin", length=3),
}
COLUMNS = ("steps", "recognizer calls", "processor seconds")


@dataclass
class Options:
    """Train agents on the embedded face world with several seeds and compare them with oracles."""

    agents: list[str] = field(default_factory=lambda: list(VARIANTS))
    """Which agents: `sarface` (the published rule with its reward), `reinforce`,
    `reinforce, per bit` (with that baseline), `grpo`, `gain`, `ppo`, `maskable_ppo`."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Training seeds."""
    runs: str = "runs/agents"
    """Folder of the trainings; those that are there are not made again."""
    part: str = ""
    """Only train, and only this share of the trainings: `1/2`, `2/2`, ..."""
    name: str = "agents"
    """Name of the files in benchmarks/results."""
    train: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            steps=3072, validate_every=64, save_every=1000, eval_faces=1000
        )
    )
    """Options of every training. `steps` and `validate_every` are multiplied by the agent's own
    factor."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.agents if name not in VARIANTS]:
            raise ValueError(f"unknown agents {unknown}; there are {', '.join(VARIANTS)}")


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m benchmarks.agents`."""
    try:
        options = parse_options(Options, argv)
        results = run(options)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.agents: {error}")
    if options.part:
        return
    base = stored(Path(options.runs) / "references.json", lambda: measure_references(options))
    payload = {
        "environment": environment("gymnasium", "stable-baselines3"),
        "commit_of_trainings": sorted({r["made"]["commit"] for rs in results.values() for r in rs}),
        "options": asdict(options),
        **summarise(base, results),
    }
    write_results(options.name, payload)
    report(payload)
    draw(payload, results, common.RESULTS / f"{options.name}.png")


def run(options: Options) -> dict[str, list[dict[str, Any]]]:
    """Train what is asked for and not there yet: results of every agent, one a seed."""
    jobs = [(name, seed) for seed in options.seeds for name in options.agents]
    results: dict[str, list[dict[str, Any]]] = {}
    for name, seed in share(jobs, options.part or "1/1"):
        folder = run_folder(options.runs, name, seed)
        print(f"{name}, seed {seed}", flush=True)
        train = VARIANTS[name].fill_in(options.train, seed)
        result = trained(train, folder)
        result["looks"] = further_looks(train, folder)
        results.setdefault(name, []).append(result)
    return results


def measure_references(options: Options) -> dict[str, Any]:
    """Constants and oracles on the same faces."""
    return references(replace(options.train, num_envs=256), fixed_mask_faces=1024)


def summarise(base: dict[str, Any], results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Numbers of every agent: see `about` in what is returned."""
    policies = base["policies"]
    keep, fixed, oracle = (
        policies[name]["margin-correct"]["mean"]
        for name in ("keep-all", "best fixed mask", "exhaustive oracle")
    )
    best_reward = policies["exhaustive oracle"]["reward"]["mean"]
    agents = {}
    for name, runs in results.items():
        rates = np.array([run["scores"]["margin-correct"] for run in runs])
        x, y = _curve(runs)
        target = _gain_target(y, base["validation"]["keep-all"], 0.9)
        agents[name] = {
            "margin-correct": summary(rates),
            "correct": summary([run["scores"]["correct"] for run in runs]),
            "kept pixels": summary([run["scores"]["kept pixels"] for run in runs]),
            "gap closed": summary((rates - keep) / (oracle - keep)),
            "regret": summary([best_reward - run["scores"]["reward"] for run in runs]),
            "beats best fixed mask": int((rates > fixed).sum()),
            "to 90 % of the final gain": dict(
                zip(COLUMNS, (first_reached(column, y, target) for column in x.T), strict=True)
            ),
            "further looks": {
                look: {
                    "margin-correct": summary(rates := _looks(runs, look, "margin-correct")),
                    "correct": summary(_looks(runs, look, "correct")),
                    "gap closed": summary((rates - keep) / (oracle - keep)),
                    "calls": float(_looks(runs, look, "calls").mean()),
                }
                for look in runs[0]["looks"]
            },
            "in all": dict(zip(COLUMNS, x[-1].tolist(), strict=True)),
            "curve": np.column_stack([x, y])[:: max(1, len(y) // 40)].round(4).tolist(),
        }
        if PUBLISHED in results and name != PUBLISHED:
            agents[name]["fewer calls than published"] = {
                str(part): fewer_calls(base, results[PUBLISHED], runs, part)
                for part in (1.0, 0.9, 0.75)
            }
    about = {
        "gap closed": "share of the gap in margin-correct rate from keep-all to the exhaustive "
        "oracle, on test faces, of the agent with the best validation score of its training",
        "regret": "mean flip reward of the exhaustive oracle less the agent's, on test faces",
        "further looks": "of agents.confident: the mask, of some, with which the recognizer is "
        "surest of whom it sees; `calls` are recognizer calls a face, one or two of them to score "
        "the decision",
        "to 90 % of the final gain": "where the interquartile mean of the validation scores is "
        "first 90 % of the way from keep-all to its last value",
        "fewer calls than published": "calls of the published rule to this part of its best gain "
        "over keep-all in validation score, over the calls of this agent to the same score",
        "curve": "steps, recognizer calls, processor seconds, interquartile mean of the "
        "validation scores",
    }
    return {"about": about, "references": base, "agents": agents}


def _looks(runs: list[dict[str, Any]], look: str, what: str) -> np.ndarray:
    return np.array([run["looks"][look][what] for run in runs])


def _curve(runs: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean steps, calls and seconds `(T, 3)` at every validation, and the IQM score `(T,)`."""
    curves = np.array([run["curve"] for run in runs])
    return curves[:, :, :3].mean(0), iqm(curves[:, :, 3])


def _gain_target(y: np.ndarray, keep: float, part: float) -> float:
    return keep + part * (y[-1] - keep)


def fewer_calls(
    base: dict[str, Any],
    published: list[dict[str, Any]],
    ours: list[dict[str, Any]],
    part: float,
    draws: int = 500,
) -> dict[str, Any]:
    """How many times fewer recognizer calls an agent needs to the published rule's best score.

    With a 95 % bootstrap interval over the seeds of both. None stands for a score never reached.
    """
    keep = base["validation"]["keep-all"]

    def calls(
        theirs: list[dict[str, Any]], mine: list[dict[str, Any]]
    ) -> tuple[float, float, float]:
        """The score, and the calls of the two to it; untrained agents have not reached it."""
        (x, y), (my_x, my_y) = _curve(theirs), _curve(mine)
        target = float(keep + part * (y.max() - keep))
        mine_at = first_reached(my_x[1:, 1], my_y[1:], target)
        return target, first_reached(x[1:, 1], y[1:], target), mine_at

    rng = np.random.default_rng(0)

    def drawn(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [runs[i] for i in rng.integers(len(runs), size=len(runs))]

    samples = [calls(drawn(published), drawn(ours)) for _ in range(draws)]
    ratios = [theirs / mine for _, theirs, mine in samples]
    target, theirs, mine = calls(published, ours)
    return {
        "score": target,
        "published": None if np.isinf(theirs) else theirs,
        "calls": None if np.isinf(mine) else mine,
        "ratio": theirs / mine if np.isfinite(theirs) else None,
        "interval": [float(q) if np.isfinite(q) else None for q in _middle(ratios)],
    }


def _middle(values: list[float]) -> np.ndarray:
    return np.nanquantile(values, [0.025, 0.975])


def report(payload: dict[str, Any]) -> None:
    """Print one line a policy."""
    rows = []
    for name, reference in payload["references"]["policies"].items():
        margin = reference["margin-correct"]
        rows.append([name, _percent(margin["mean"], margin["interval"]), *[""] * 6])
    for name, agent in payload["agents"].items():
        gap, reached = agent["gap closed"], agent["to 90 % of the final gain"]
        fewer = agent.get("fewer calls than published", {}).get("1.0")
        rows.append(
            [
                name,
                _percent(agent["margin-correct"]["iqm"], agent["margin-correct"]["interval"]),
                _percent(gap["iqm"], gap["interval"]),
                f"{agent['regret']['iqm']:.3f}",
                f"{agent['beats best fixed mask']}/{len(gap['seeds'])}",
                f"{reached['recognizer calls']:.0f}",
                f"{agent['in all']['recognizer calls']:.0f}",
                f"{fewer['ratio']:.1f}" if fewer and fewer["ratio"] is not None else "",
            ]
        )
    heads = ["policy", "margin-correct %", "gap closed %", "regret", "beats fixed"]
    print_table([*heads, "calls to 90 %", "calls", "x fewer than published"], rows)
    print("\ninterquartile means [95 % bootstrap intervals] over seeds, on test faces\n")
    rows = []
    for name, agent in payload["agents"].items():
        for look, found in agent["further looks"].items():
            margin, gap = found["margin-correct"], found["gap closed"]
            rows.append(
                [name, look, f"{found['calls']:.1f}", _percent(margin["iqm"], margin["interval"])]
                + [_percent(gap["iqm"], gap["interval"])]
            )
    print_table(
        ["agent", "further looks", "calls a face", "margin-correct %", "gap closed %"], rows
    )


def _percent(mean: float, bounds: list[float]) -> str:
    return f"{100 * mean:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def draw(payload: dict[str, Any], results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Learning curves against steps, calls and seconds, and the shares of the gap closed."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.2), layout="constrained")
    curves, bars = axes.ravel()[:3], axes[1, 1]
    base = payload["references"]
    colours = {name: f"C{i}" for i, name in enumerate(results)}
    for axis, column, label in zip(curves, range(3), COLUMNS, strict=True):
        for name, runs in results.items():
            x, y = _curve(runs)
            scores = np.array([run["curve"] for run in runs])[:, :, 3]
            low, high = interval(scores, draws=200)
            axis.plot(x[:, column], 100 * y, lw=1.3, color=colours[name], label=name)
            axis.fill_between(
                x[:, column], 100 * low, 100 * high, color=colours[name], alpha=0.15, lw=0
            )
        for name, style in (("keep-all", ":"), ("best fixed mask", "--")):
            rate = 100 * base["validation"][name]
            axis.axhline(rate, color="black", lw=0.8, ls=style, label=name)
        axis.set(xlabel=label, ylabel="margin-correct validation faces, %")
    curves[0].set_xlabel("faces decided on")
    curves[2].set_xlabel("processor seconds of training (one core)")
    figure.legend(
        *curves[0].get_legend_handles_labels(), fontsize=8, ncols=5, loc="outside upper center"
    )
    names = list(results)
    gaps = [payload["agents"][name]["gap closed"] for name in names]
    bars.barh(names, [100 * gap["iqm"] for gap in gaps], color=[colours[n] for n in names])
    for row, gap in enumerate(gaps):
        bars.plot(100 * np.array(gap["interval"]), [row, row], color="black", lw=1.5)
        bars.plot(100 * np.array(gap["seeds"]), [row] * len(gap["seeds"]), "k.", ms=4)
    for look, marker in zip(payload["agents"][names[0]]["further looks"], "|d1^", strict=False):
        closed = [
            100 * payload["agents"][name]["further looks"][look]["gap closed"]["iqm"]
            for name in names
        ]
        bars.plot(closed, range(len(names)), f"k{marker}", mfc="white", ms=7, label=look)
    bars.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1))
    policies = base["policies"]
    keep, fixed, best = (
        policies[name]["margin-correct"]["mean"]
        for name in ("keep-all", "best fixed mask", "exhaustive oracle")
    )
    bars.axvline(100 * (fixed - keep) / (best - keep), color="black", ls="--", lw=0.8)
    bars.invert_yaxis()
    bars.set(xlabel="gap closed on test faces, % (dashed: best fixed mask)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
