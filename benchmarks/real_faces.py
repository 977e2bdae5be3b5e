"""Does choosing regions help a real recognizer on photographs? Everything behind the results page.

Gets a recognizer used to holes, trains agents on photographs of some people, judges them on others
beside baselines and oracles (`benchmarks.policies`), compares partitions and fills, and trains
recognizer and agent in turn with two controls. Each step is one command and leaves one file; what
is there is not made again, so that a stopped run goes on where it was. `real_faces.md` is then
written from the files alone.
"""

import json
import logging
import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import policies
from benchmarks.common import RESULTS
from benchmarks.real_faces_page import write_page
from recognizer.cli import parse_options
from recognizer.runs import prepare_run, write_json
from train_agent import SHORT, TrainOptions, check_config, train, train_in_turn

_log = logging.getLogger(__name__)
TRAINED = ("mixed", "mask", "patch", "sunglasses")
JUDGED = (*TRAINED, "clean")
PARTITIONS = (
    *("sarface24", "celeba19", "grid5x5", "grid7x7", "grid10x10"),
    *("sarface24xgrid4x4", "celeba19xgrid4x3"),
)
FILLS = ("mean", "zero", "blur", "inpaint")
# Of the page that is kept.
_DATA = Path("../shared/data/lfw_dev")
_RUNS = Path("runs/real_faces")
_RESULTS = RESULTS / "real_faces"
BASELINES = ("clean", "keep-all", "random", "fixed", "face-only")
ORACLES = ("oracle-occluder", "oracle-regions")
# Alternating training and its controls: the same steps of the recognizer on other faces, and then
# the same of the agent.
ALTERNATING = {
    "alternating": [],
    "random-masks": ["--alternating.masks", "random"],
    "unmasked": ["--alternating.mix", "0"],
}
# Eight faces behind the same occluder are climbed together, and the policy sees what the parser
# sees: what a mask gains on one face is mostly that photograph's alone, and pixels teach slowly.
_AGENT = ["--agent", "preference", "--preference.trunk", "light", "--preference.depth", "3"]
_AGENT += ["--alike", "8", "--observation", "regions+image"]
# What a drop costs counts, and faces that gain little are climbed by half only.
_AGENT += ["--preference.weigh", "true", "--preference.threshold", "0.03"]
_AGENT += ["--preference.finish", "0.5", "--precision", "fastest"]
# Masks are tried first, so that the network learns from all of them from the start.
_AGENT += ["--preference.collect", "0.8", "--preference.epochs", "6", "--validate_every", "512"]
_VALUE = ["--agent", "value", "--value.depth", "3", "--value.augment", "true"]
_VALUE += ["--observation", "regions+parsing+image", "--obs_size", "60", "--validate_every", "1024"]
# Its cells end where a mask ends, as far as the parser sees that.
_PARSED = ["--partition", "sarface24xgrid4x4"]


@dataclass
class Options:
    """Make everything that the results page on real faces needs, and write the page."""

    data: Path = _DATA
    """Folder in LFW's form."""
    recognizer: str = "resnet29"
    """The recognizer; what agents are trained and judged with is this one, used to holes."""
    parser: str = "light"
    """The face parser."""
    folds: str = "1-5/6/7"
    """Folds of the people for training, choosing and reporting."""
    runs: Path = _RUNS
    """Where the trained agents are; of other data, or reduced, by default beside that."""
    results: Path = _RESULTS
    """Where the JSON files are, by default of other data, or reduced, in the folder of the agents;
    the page lies beside this folder."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Training seeds."""
    trained: list[str] = field(default_factory=lambda: list(TRAINED))
    """Occlusions that agents are trained on."""
    judged: list[str] = field(default_factory=lambda: list(JUDGED))
    """Occlusions that policies are judged on."""
    partitions: list[str] = field(default_factory=lambda: list(PARTITIONS))
    """Partitions compared by what oracles do with them."""
    fills: list[str] = field(default_factory=lambda: list(FILLS))
    """Fills compared."""
    alternate: bool = True
    """Train recognizer and agent in turn, and the controls."""
    train: list[str] = field(
        default_factory=lambda: [
            *("--partition", "grid10x10", "--reward", "contrast", "--best_by", "reward"),
            *("--val_faces", "468"),
        ]
    )
    """Options of `train_agent.py` for every agent."""
    recipes: dict[str, list[str]] = field(
        default_factory=lambda: {
            "mixed": [*_AGENT, "--steps", "12288", "--coverings", "8"],
            "patch": [*_AGENT, "--steps", "6144", "--coverings", "4"],
            "mask": [*_AGENT, "--steps", "6144", "--coverings", "4", *_PARSED],
            # Made before the others' recipe; it has nothing to gain and keeps them.
            "sunglasses": [*_VALUE, "--steps", "4096", "--coverings", "3"],
        }
    )
    """Further options by what covers the faces; for what is not named, those of the mixture."""
    holes: list[str] = field(
        default_factory=lambda: [
            *("--agent", "reinforce", "--partition", "grid5x5", "--alternate", "true"),
            *("--alternating.masks", "random", "--alternating.head", "none"),
            *("--alternating.mix", "0.85", "--alternating.policy_steps", "0"),
            *("--alternating.rounds", "1", "--alternating.recognizer_steps", "1500"),
            *("--alternating.batch_size", "32", "--alternating.lr", "2e-4"),
            *("--alternating.decay", "true"),
        ]
    )
    """Options of `train_agent.py` for the recognizer that is used to holes: it sees uncovered faces
    with random cells missing, and learns to make of them what it made of the whole face."""
    turns: list[str] = field(
        default_factory=lambda: [
            *("--alternating.rounds", "1", "--alternating.policy_steps", "0"),
            *("--alternating.recognizer_steps", "2400", "--alternating.batch_size", "32"),
            *("--alternating.masks", "greedy", "--alternating.head", "none"),
            *("--alternating.temperature", "0.01", "--alternating.blend", "0.8"),
            *("--alternating.lr", "2e-4", "--alternating.warmup", "40"),
            *("--alternating.mix", "0.85", "--alternating.decay", "true"),
            # For so many steps there are too few photographs otherwise.
            *("--alternating.jitter", "0.5", "--min_images", "1", "--alike", "1"),
        ]
    )
    """Further options of the recognizer's turn, after that of the mixture's agents."""
    beside: list[str] = field(
        default_factory=lambda: [
            *("--alternating.rounds", "1", "--alternating.policy_steps", "6144"),
            *("--alternating.recognizer_steps", "0"),
        ]
    )
    """Further options of the agent's turn after that, beside the recognizer that came of it."""
    fixed_calls: int = 21_000
    """Images scored to find the best fixed mask."""
    occlusion_seeds: list[int] = field(default_factory=lambda: list(range(4)))
    """Every reported pair is occluded in these ways: what it happens to be covered by is much of
    the noise."""
    samples: int = 1000
    """Samples of the bootstrap."""
    pairs: int | None = None
    """Use so many pairs of each kind and fold."""
    reduced: bool = False
    """Try everything on little: one seed, two occlusions, few pairs, short trainings."""
    page_only: bool = False
    """Write the page from the files that are there."""

    def __post_init__(self) -> None:
        if self.reduced or self.data != _DATA:  # does not replace the page that is kept
            if self.runs == _RUNS:
                self.runs = Path(f"{_RUNS}-{'reduced' if self.reduced else self.data.name}")
            if self.results == _RESULTS:
                self.results = self.runs / _RESULTS.name
        if self.reduced:
            self.seeds, self.trained, self.judged = self.seeds[:1], ["mixed"], ["mixed", "clean"]
            self.partitions, self.fills = self.partitions[:1], self.fills[:1]
            self.pairs, self.samples, self.occlusion_seeds = self.pairs or 40, 200, [0]
            less = ["--steps", "512", "--validate_every", "512", "--coverings", "1"]
            less += ["--value.masks", "4", "--preference.masks", "8"]
            self.recipes = {kind: [*recipe, *less] for kind, recipe in self.recipes.items()}
            few = ["--alternating.rounds", "1", "--alternating.recognizer_steps", "2"]
            self.holes = [*self.holes, *few, "--val_faces", "20"]
            self.turns = [*self.turns, *few, "--val_faces", "20"]
            self.beside = [*self.beside, "--alternating.policy_steps", "512", "--val_faces", "20"]
            self.fixed_calls = min(self.fixed_calls, 600)


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m benchmarks.real_faces`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_options(Options, argv)
    if not options.page_only:
        try:
            make_all(options)
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: {error}") from None
    print(f"\nwrote {write_page(options.results)}")


def make_all(options: Options) -> None:
    """Every step that is not done yet, the most telling ones first."""
    make_run(options, "holes", [*_where(options, "clean", options.recognizer), *options.holes])
    for kind in options.trained:
        for seed in options.seeds:
            make_run(options, f"{kind}-{seed}", training_command(options, kind, str(seed)))
    general = [str(options.runs / f"mixed-{seed}") for seed in options.seeds]
    for kind in options.judged:
        special = [str(options.runs / f"{kind}-{seed}") for seed in options.seeds]
        if kind == "mixed":
            names = [*BASELINES, *ORACLES, *general]
            judge(options, kind, kind, names)
        elif kind == "clean":
            judge(options, kind, kind, ["keep-all", *general])
        else:
            judge(options, f"{kind}-mixed", kind, ["keep-all", *ORACLES[:1], *general])
            if kind in options.trained:
                judge(options, kind, kind, ["clean", "keep-all", *ORACLES, *special])
    plain = ["clean", "keep-all", *ORACLES]
    judge(options, "plain", "mixed", plain, seeds=[0], recognizer=options.recognizer)
    # Choices, so on the people for choosing.
    for partition in options.partitions:
        chosen = ["--split", "val", "--partition", partition]
        judge(options, f"partition-{partition}", "mixed", ["keep-all", *ORACLES], chosen, [0])
    for fill in options.fills:
        chosen = ["--split", "val", "--fill", fill, "--partition", "grid10x10"]
        judge(options, f"fill-{fill}", "mixed", ["keep-all", *ORACLES], chosen, [0])
    if options.alternate:
        together = []
        for seed in options.seeds:
            for name in ALTERNATING:
                taught = f"{name}-recognizer-{seed}"
                make_run(options, taught, recognizer_command(options, name, str(seed)))
                make_run(options, f"{name}-{seed}", beside_command(options, taught, str(seed)))
                together.append(str(options.runs / f"{name}-{seed}" / "last"))
        for kind in ("mixed", "clean"):
            names = ["clean", "keep-all", *together]
            judge(options, f"alternating-{kind}", kind, names)


def training_command(
    options: Options, kind: str, seed: str, recognizer: str | None = None
) -> list[str]:
    """Arguments of `train_agent.py` for one agent."""
    own = options.recipes.get(kind, options.recipes["mixed"])
    where = _where(options, kind, recognizer or used_to_holes(options))
    return [*where, "--seed", seed, *options.train, *own]


def recognizer_command(options: Options, name: str, seed: str) -> list[str]:
    """Arguments of `train_agent.py` for the recognizer's turn of one of `ALTERNATING`."""
    argv = [*training_command(options, "mixed", seed), *_after_mixed(options, seed)]
    return [*argv, *options.turns, *ALTERNATING[name]]


def beside_command(options: Options, taught: str, seed: str) -> list[str]:
    """Arguments of `train_agent.py` for the agent's turn after a recognizer's."""
    recognizer = str(options.runs / taught / "last" / "recognizer.safetensors")
    argv = [*training_command(options, "mixed", seed, recognizer), *_after_mixed(options, seed)]
    return [*argv, *options.beside]


def _after_mixed(options: Options, seed: str) -> list[str]:
    agent = options.runs / f"mixed-{seed}" / "best" / "agent.safetensors"
    return ["--start", str(agent), "--alternate", "true"]


def used_to_holes(options: Options) -> str:
    """The file of the recognizer that agents are trained and judged with."""
    return str(options.runs / "holes" / "last" / "recognizer.safetensors")


def _where(options: Options, kind: str, recognizer: str) -> list[str]:
    where = ["--data", str(options.data), "--folds", options.folds, "--parser", options.parser]
    return [*where, "--recognizer", recognizer, "--occlusion", kind]


def make_run(options: Options, name: str, argv: list[str]) -> None:
    """Train, or go on training, one agent, unless that is done; note what it took."""
    folder = options.runs / name
    argv = [*argv, "--run", str(folder)]
    path = options.results / "runs.json"
    about = json.loads(path.read_text()) if path.is_file() else {}
    preparing = about.get(name, {}).get("preparing", 0.0)
    if not (folder / "last" / "agent.safetensors").is_file():
        _log.info("training %s", folder)
        start, before = time.monotonic(), _seconds(folder)
        run = parse_options(TrainOptions, [*argv, "--resume", "true"], SHORT)
        prepare_run(folder, resume=True)
        check_config(run, folder)
        if run.alternate:
            train_in_turn(run, folder)
        else:
            train(run, folder)
        # Faces made and parsed at first use, people enrolled.
        preparing = preparing if before else 0.0
        preparing += time.monotonic() - start - (_seconds(folder) - before)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics: dict[str, Any] = {}
    for line in lines:
        metrics |= json.loads(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    about[name] = {
        "command": shlex.join(["python", "train_agent.py", *argv]),
        "seconds": _seconds(folder),
        "preparing": preparing,
        "steps": metrics["step"],
        "recognizer_calls": metrics.get("charts/recognizer_calls", 0),
    }
    write_json(path, about)


def _seconds(folder: Path) -> float:
    """How long the training in a folder has taken."""
    path = folder / "checkpoint.pt"
    return torch.load(path, weights_only=True, mmap=True)["seconds"][0] if path.is_file() else 0.0


def judge(
    options: Options,
    name: str,
    kind: str,
    names: list[str],
    further: list[str] | None = None,
    seeds: list[int] | None = None,
    recognizer: str | None = None,
) -> None:
    """Judge policies on one kind of occlusion, unless the very same has been done."""
    recognizer = recognizer or used_to_holes(options)
    argv = ["--data", str(options.data), "--recognizer", recognizer]
    argv += ["--parser", options.parser, "--folds", options.folds, "--occlusion", kind]
    ways = [0] if kind == "clean" else (seeds or options.occlusion_seeds)
    argv += ["--occlusion-seeds", *map(str, ways), "--fixed-calls", str(options.fixed_calls)]
    argv += ["--samples", str(options.samples), "--normalize"]
    argv += [] if options.pairs is None else ["--pairs", str(options.pairs)]
    argv += ["--policies", *names, *(further or [])]
    argv += ["--name", name, "--output", os.path.relpath(options.results)]
    argv += ["--examples", str(options.runs / f"{name}.png")]
    path = options.results / f"{name}.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    # Agents and recognizers that were trained again meanwhile are judged again.
    weights = [file for name in names for file in Path(name).rglob("*.safetensors")]
    weights.append(Path(recognizer))  # a file, or the name of one that does not change
    changed = any(
        done and file.is_file() and file.stat().st_mtime > path.stat().st_mtime for file in weights
    )
    if done.get("arguments") == argv and not changed:
        return
    _log.info("judging %s", name)
    start = time.monotonic()
    policies.run(policies.make_parser().parse_args([*argv, "--overwrite"]))
    found = json.loads(path.read_text())
    write_json(path, found | {"arguments": argv, "seconds": time.monotonic() - start})


if __name__ == "__main__":
    main()
