"""Does showing a recognizer only what a policy keeps help it to verify and to identify?

Every policy decides on every face of the pairs of LFW's protocol, the faces are masked, and the
*masked* images are embedded; beside it stands the full image. Differences are paired, with
intervals over people.
"""

import argparse
import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.agent import read_agent
from agents.ranked import best_mask, best_masks
from agents.registry import load_agent
from benchmarks.common import RESULTS, environment
from benchmarks.mask_policies import (
    OracleScorer,
    Run,
    cached_masks,
    covered_regions,
    kept_by,
    region_env,
)
from benchmarks.masked_pairs import (
    Judge,
    PairFaces,
    dropped,
    load_pair_faces,
    mean_dropped,
    mean_result,
)
from benchmarks.policy_report import draw, examples, print_rows
from recognizer.data.disk_cache import cache_folder
from recognizer.data.problems import Problems
from recognizer.engine import InferenceEngine
from recognizer.loader import load_recognizer, recognizer_names
from recognizer.recognizer import Recognizer
from recognizer.runs import write_json
from sarface_env.core import RegionSelection
from sarface_env.fills import make_fill
from sarface_env.options import EnvOptions, build_core
from sarface_env.partitions import CELEBA19, make_partition
from sarface_env.photographs import KINDS, load_photographs, pairs_of, parse_folds

POLICIES = {
    "clean": "nothing covers the faces and everything is kept: what there was to lose",
    "keep-all": "everything is kept",
    "random": "each region is kept with probability one half",
    "fixed": "the one mask that raises the margin of training people most",
    "face-only": "background, hair, clothes and what is worn are dropped, by the parsing",
    "oracle-occluder": "exactly the covered pixels are dropped",
    "oracle-regions": "regions more than half covered are dropped",
    "greedy": "an oracle drops the regions without which a face's margin is highest",
}
BESIDE_THE_FACE = ("background", "hair", "hat", "earring", "necklace", "neck", "cloth")
EPILOG = f"""\
A policy is the folder RUN of a run of train_agent.py, for the agent that was best on its validation
faces, RUN/last for the last one, or:
{chr(10).join(f"  {name:<16} {what}" for name, what in POLICIES.items())}

NAME@PARTITION, such as fixed@sarface24, uses another partition than --partition.

Data is a folder in LFW's form: images/NAME/NAME_0001.jpg, pairs.txt and perhaps landmarks.csv.
--folds 8-10 reports these folds, each by a threshold from the others; --folds 1-5/6/7 says which
are for training, choosing and reporting, as in train_agent.py: then the `test` folds are reported
by a threshold from the `val` folds. Rank-1 is among the people of the pairs with two or more
images, known by the mean of their other, uncovered images.

example:
  python -m benchmarks.policies --data lfw/ --occlusion mixed --policies keep-all random fixed \\
    face-only oracle-occluder greedy runs/mixed-0 runs/mixed-1
"""


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m benchmarks.policies`."""
    options = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = run(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"\nwrote {path} and {path.with_suffix('.png').name}")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policies",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(recognizer_names())
    add = parser.add_argument
    add("--data", required=True, type=Path, metavar="FOLDER")
    add("--recognizer", default="resnet29", help=f"a file of weights, or {known}")
    add("--parser", default="light", help="face parser: light, or a file of weights")
    add("--policies", nargs="+", metavar="POLICY", default=list(POLICIES)[:6])
    add("--occlusion", default="clean", choices=KINDS, help=f"of every face: {', '.join(KINDS)}")
    add("--severity", type=float, default=1.0, help="size of what covers faces, 0.25 to 2")
    add("--occlusion-seeds", nargs="+", type=int, default=[0], metavar="N")
    add("--folds", default="", help="such as 8-10, or 1-5/6/7; all by default")
    add("--split", default="test", choices=("val", "test"), help="reported of TRAIN/VAL/TEST folds")
    add("--pairs", type=int, metavar="N", help="use N pairs of each kind and fold, to try it out")
    add("--threshold-folds", default="", metavar="FOLDS", help="also used to choose thresholds")
    add(
        "--partition", help="of policies that are no runs; by default the first run's, or sarface24"
    )
    add("--fill", help="of policies that are no runs; by default the first run's, or mean")
    add("--fixed-calls", type=int, default=60_000, help="images scored to find the fixed mask")
    add(
        "--normalize",
        action="store_true",
        help="also judge pairs relative to how like each face is to the training people (AS-norm)",
    )
    add("--seed", type=int, default=0, help="of the bootstrap and of random")
    add("--samples", type=int, default=1000, help="of the bootstrap")
    add("--examples", type=Path, metavar="PNG", help="show faces as policies leave them")
    add("--name", default="policies", help="of the result files in benchmarks/results")
    add("--output", type=Path, help="folder of the result files, if another")
    add("--overwrite", action="store_true", help="replace result files of this name")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def run(options: argparse.Namespace) -> Path:
    """Judge all policies; prints the table, writes JSON and figure, and returns the JSON's path."""
    recognizer = load_recognizer(options.recognizer, options.device)
    about, runs = environment(), read_runs(options, recognizer.spec.size)
    bench = Bench(options, runs, recognizer)
    results = []
    for name in dict.fromkeys(options.policies):
        start = time.monotonic()
        results.append(bench.judge(name) | {"seconds": time.monotonic() - start})
    rows = bench.rows(results + mean_over_seeds(results))
    payload = {
        "environment": about,
        "data": options.data.name,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "faces": int(bench.data.reported.sum()),
        "pairs": int(np.isin(bench.data.fold, bench.data.report).sum()),
        "unusable_pairs": bench.data.unusable,
        "probes": int(bench.main.probes.sum()),
        "policies": rows,
    }
    print(f"\n{payload['pairs']} pairs, {payload['faces']} faces, occlusion {options.occlusion}")
    print("percent; [95 % interval over people]; differences are paired\n")
    print_rows(rows)
    path = result_path(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, payload)
    figure = draw(rows, f"{options.data.name}, {options.occlusion}")
    figure.savefig(path.with_suffix(".png"), dpi=150)
    if options.examples:
        options.examples.parent.mkdir(parents=True, exist_ok=True)
        kinds = bench.data.kinds[bench.examples.numpy()]
        examples(bench.shown, list(kinds)).savefig(options.examples, dpi=110)
    return path


def result_path(options: argparse.Namespace) -> Path:
    """Where the JSON goes."""
    return (options.output or RESULTS) / f"{options.name}.json"


def read_runs(options: argparse.Namespace, size: int) -> dict[str, Run]:
    """The runs among the policies.

    Args:
        options: of the command line.
        size: side of the recognizer's images.

    Raises:
        DataError: all that is wrong with the options, in one list.
    """
    problems = Problems()
    runs: dict[str, Run] = {}

    def attempt(what: Callable[[], object]) -> None:
        try:
            what()
        except ValueError as error:
            problems.add(error)

    def read(name: str) -> None:
        run = runs[name] = Run.read(name)
        seen = read_agent(run.agent)["layout"]["shape"][-1]
        if seen != (run.env.obs_size or size):
            raise ValueError(
                f"{name}: its agent looks at images of {seen} pixels, {options.recognizer} at "
                f"{size}: judge it by a recognizer of its size"
            )

    for name in dict.fromkeys(options.policies):
        what, _, partition = name.partition("@")
        if what not in POLICIES:
            attempt(partial(read, name))
        elif partition:
            attempt(partial(make_partition, partition))
    attempt(partial(make_partition, options.partition or "sarface24"))
    attempt(partial(make_fill, options.fill or "mean"))
    attempt(partial(EnvOptions, severity=options.severity))
    if not options.data.is_dir():
        problems.add(f"no folder of faces at {options.data}")
    if (path := result_path(options)).exists() and not options.overwrite:
        problems.add(f"{path} is there; replace it with --overwrite, or choose another --name")
    problems.settle("options")
    return runs


def mean_over_seeds(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One more result for runs NAME-0, NAME-1, ...: the mean of their results."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        match = re.fullmatch(r"(.+)-\d+(/last)?", result["name"])
        if result.get("run") and match:
            groups.setdefault(match[1] + (match[2] or ""), []).append(result)
    return [
        members[0]
        | {
            "name": f"{name}, {len(members)} seeds",
            "seeds": len(members),
            "result": mean_result([member["result"] for member in members]),
            "full": mean_result([member["full"] for member in members]),
            "dropped": mean_dropped([member["dropped"] for member in members]),
            "seconds": sum(member["seconds"] for member in members),
        }
        for name, members in groups.items()
        if len(members) > 1
    ]


def folds_of(options: argparse.Namespace) -> tuple[list[int], list[int]]:
    """Folds that are reported, and others that only help to choose thresholds."""
    if "/" in options.folds:
        parts = parse_folds(options.folds)
        report = parts[options.split]
        others = parts["val"] if options.split == "test" else parts["train"][-1:]
    else:
        every = range(1, pairs_of(options.data).folds + 1)
        report = _numbers(options.folds) if options.folds else list(every)
        others = []
    if options.threshold_folds:
        others = _numbers(options.threshold_folds)
    others = [fold for fold in others if fold not in report]
    if len(report) + len(others) < 2:
        raise ValueError(
            f"fold {report[0]} alone has no threshold from other folds; add --threshold-folds"
        )
    return report, others


def _short(run: str) -> str:
    path = Path(run)
    return f"{path.parent.name}/last" if path.name == "last" else path.name


def _numbers(text: str) -> list[int]:
    return parse_folds(f"{text}/{10**6}/{10**6 + 1}")["train"]


class Bench:
    """Everything that policies are judged with.

    Args:
        options: of the command line.
        runs: by name, those among the policies.
        recognizer: the one of the options.
    """

    def __init__(self, options: argparse.Namespace, runs: dict[str, Run], recognizer: Recognizer):
        self.options, self.runs, self.size = options, runs, recognizer.spec.size
        first = next(iter(runs.values()), None)
        self.base = EnvOptions(
            dataset=str(options.data),
            recognizer=options.recognizer,
            parser=options.parser,
            partition=options.partition or (first.env.partition if first else "sarface24"),
            fill=options.fill or (first.env.fill if first else "mean"),
            reward="margin",
            occlusion=options.occlusion,
            severity=options.severity,
            device=options.device,
        )
        if any(name.startswith("fixed") for name in options.policies):
            self.training_options(self.base)  # to fail early
        report, others = folds_of(options)
        photographs = replace(self.base.photographs(self.size, True), folds="")
        self.data: PairFaces = load_pair_faces(
            photographs, report, others, options.occlusion_seeds, options.pairs
        )
        self.cohort = None
        if options.normalize:
            strangers = replace(self.training_options(self.base), occlusion="clean")
            self.cohort = load_photographs(strangers.photographs(self.size, False))
        self.shown: dict[str, Tensor] = {}
        rows = [
            np.flatnonzero(self.data.reported & (self.data.kinds == kind))[:2]
            for kind in np.unique(self.data.kinds)
        ]
        self.examples = torch.from_numpy(np.concatenate(rows))
        self.main = self._judge_by(recognizer)
        self.judges = {options.recognizer: self.main}

    def _judge(self, recognizer: str) -> Judge:
        if recognizer not in self.judges:
            network = load_recognizer(recognizer, self.options.device)
            if network.spec.size != self.size:
                raise ValueError(
                    f"{recognizer} takes images of {network.spec.size} pixels, "
                    f"{self.options.recognizer} of {self.size}: compare them one at a time"
                )
            self.judges[recognizer] = self._judge_by(network)
        return self.judges[recognizer]

    def _judge_by(self, recognizer: Recognizer) -> Judge:
        seed, samples = self.options.seed, self.options.samples
        engine = InferenceEngine(recognizer)
        return Judge(engine, self.data, seed, samples, cache_folder(), self.cohort)

    def judge(self, name: str) -> dict[str, Any]:
        """What a policy does and what comes of it."""
        options = self.options
        if name in self.runs:
            run = self.runs[name]
            judge, env = self._judge(str(run.recognizer or options.recognizer)), run.env
            keep = self._agent(run)
        else:
            judge, env = self.main, self.base
            if name == "clean":
                found = judge.clean()
                return {"name": name, "judge": judge, "result": found, "full": judge.full}
            what, _, partition = name.partition("@")
            env = replace(env, partition=partition or env.partition)
            keep = self._baselines(env)[what]()
        shown = _short(name) if name in self.runs else name
        self.shown[shown] = judge.show(self.examples, keep, env.fill)
        if env.parser != options.parser:
            logging.warning(f"{name} was trained with parser {env.parser}, not {options.parser}")
        return {
            "name": shown,
            "run": name in self.runs,
            "partition": str(env.partition),
            "fill": env.fill,
            "judge": judge,
            "result": judge.masked(keep, env.fill, name),
            "full": judge.full,
            "dropped": dropped(self.data, keep),
        }

    @cached_property
    def _scorer(self) -> OracleScorer:
        return OracleScorer(self.main)

    def _env(self, options: EnvOptions):
        return region_env(self.data.faces, self._scorer, options)

    def _agent(self, run: Run) -> Tensor:
        env = self._env(run.env)
        agent = load_agent(run.agent, env)

        def masks(obs: np.ndarray, rows: np.ndarray) -> Tensor:
            return torch.from_numpy(agent.predict(obs, deterministic=True)[0]).bool()

        return kept_by(env, masks)

    def _baselines(self, options: EnvOptions) -> dict[str, Callable[[], Tensor]]:
        faces = self.data.faces
        everything = torch.ones(faces.images.shape[0], *faces.images.shape[2:], dtype=torch.bool)

        def occluder() -> Tensor:
            return everything if faces.occluders is None else ~faces.occluders.bool()

        def face_only() -> Tensor:
            beside = torch.tensor([CELEBA19.index(c) for c in BESIDE_THE_FACE], dtype=torch.uint8)
            assert faces.parsing is not None
            return ~torch.isin(faces.parsing, beside)

        return {
            "keep-all": lambda: everything,
            "random": lambda: self._random(options),
            "fixed": lambda: self._fixed(options),
            "face-only": face_only,
            "oracle-occluder": occluder,
            "oracle-regions": lambda: self._covered_regions(options),
            "greedy": lambda: self._greedy(options),
        }

    def _random(self, options: EnvOptions) -> Tensor:
        generator = torch.Generator().manual_seed(self.options.seed)
        env = self._env(options)
        return kept_by(
            env, lambda _, rows: torch.rand(len(rows), env.core.bits, generator=generator) < 0.5
        )

    def _covered_regions(self, options: EnvOptions) -> Tensor:
        env = self._env(options)
        return kept_by(env, lambda _, rows: covered_regions(env.core, rows))

    def _greedy(self, options: EnvOptions) -> Tensor:
        core = (env := self._env(options)).core
        every = torch.arange(len(core))
        masks = cached_masks(core, "greedy", lambda: best_masks(core.evaluate, every, core.bits))
        return kept_by(env, lambda _, rows: masks[torch.from_numpy(rows)])

    def _fixed(self, options: EnvOptions) -> Tensor:
        core: RegionSelection = build_core(self.training_options(options))
        # Each region that a face has is scored about three times.
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(core)))
        each = 3 * core.present(order[:64]).sum(1).double().mean()
        index = order[: max(1, int(self.options.fixed_calls / each))]
        name = f"fixed {len(index)}"
        mask = cached_masks(core, name, lambda: best_mask(core.evaluate, index, core.bits))
        return kept_by(self._env(options), lambda _, rows: mask.expand(len(rows), -1))

    def training_options(self, env: EnvOptions) -> EnvOptions:
        """The training people that the fixed mask is found on: of the data, else of a run.

        Raises:
            ValueError: there are none.
        """
        if "/" in self.options.folds:
            return replace(env, split="train", folds=self.options.folds)
        for run in self.runs.values():
            return replace(env, dataset=run.env.dataset, split="train", folds=run.env.folds)
        raise ValueError(
            "the fixed mask is found on people for training: give --folds TRAIN/VAL/TEST, or a run "
            "whose training people are taken"
        )

    def rows(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Numbers of every policy for JSON, with its differences to keep-all and to fixed.

        Means over seeds are compared with each other too, and with each other's full images.
        """
        by_name = {result["name"]: result for result in results}
        full = self.main.full
        rows = []
        for result in results:
            judge: Judge = result["judge"]
            own = result["full"]
            row = result | judge.summary(result["result"])
            row["full"] = judge.summary(own)["metrics"] | {"rank1": own["right"].mean()}
            against = {"keep-all": full, "full": own}
            if "fixed" in by_name:
                against["fixed"] = by_name["fixed"]["result"]
            for other in results if "seeds" in result else []:
                if "seeds" in other and other is not result:
                    against[other["name"]] = other["result"]
                    against[f"{other['name']}, full"] = other["full"]
            row["full"]["to_keep-all"] = judge.difference(own, full)["accuracy"]
            row["differences"] = {
                other: judge.difference(result["result"], value) for other, value in against.items()
            }
            if "oracle-occluder" in by_name:
                best = by_name["oracle-occluder"]["result"]["verification"].metrics["accuracy"]
                keep = full["verification"].metrics["accuracy"]
                gain = row["metrics"]["accuracy"] - keep
                row["recovered"] = gain / (best - keep) if best > keep else None
            rows.append(row)
        for row in rows:
            del row["result"], row["judge"]
        return rows


if __name__ == "__main__":
    main()
