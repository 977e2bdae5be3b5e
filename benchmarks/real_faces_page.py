"""The results page on real faces, from nothing but the files of `benchmarks.real_faces`."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

INTRODUCTION = """\
# Real faces: does choosing regions help a real recognizer?

SARFace's claim, as its authors never tested it: the *masked* image is what is embedded, the
people are none that the policy was trained or chosen on, and every difference has an interval over
people.

**How.** Photographs of Labeled Faces in the Wild, aligned by five points, occluded, then parsed
(the parser sees what a camera would). Both faces of a pair are occluded. A policy is shown the
image and its regions and drops some; what it drops is filled with the recognizer's mean colour,
and the frozen recognizer embeds what is left.

**The recognizer** is ResNet-29, used to holes: as it comes, a grey hole disturbs it about as much
as what covers the face, and there is little to gain (see *The recognizer as it comes*). So it was
first shown uncovered faces of the training people with random cells missing, and learned to make
of them what it made of the whole faces (run `holes`). It has seen no occluder. Then it is frozen:
every row of a table, keep-all included, is by this recognizer, unless said otherwise.

*Accuracy* is that of LFW's protocol, the threshold chosen on a fold that is not reported; *rank-1*
is identification among the people of the pairs, known by the mean of their other, uncovered images.
`keep-all` is the recognizer as it is; `fixed` the best single mask, found on the training people
with as many recognizer calls as a training; `oracle-occluder` drops exactly what is covered,
`oracle-regions` the regions that are covered by half; `clean` are the same faces uncovered.
*Recovered* is the gain over keep-all as a share of what `oracle-occluder` gains. *Relative to
strangers*, the same pairs are judged by how like two faces are beyond how like each is to the 200
of the training people who are most like it (AS-norm), keep-all as well. Rows of several
seeds are means over training seeds. Intervals are 95 %, from 1,000 bootstrap samples of people, and
paired for differences.

Pictures of faces before and after, one for every table, are written beside the runs (`--examples`
in the commands). They show people, so they are not kept here.
"""
KINDS = {
    "mixed": "Any occluder or none, one policy for everything",
    "mask": "Surgical masks",
    "patch": "Patches of other photographs",
    "sunglasses": "Sunglasses",
    "object": "Objects and arms",
    "scarf": "Scarves",
    "clean": "Nothing covers the faces",
}


def write_page(folder: Path) -> Path:
    """Write `FOLDER.md` and its figures from the JSON files of the folder; returns its path.

    What people make of the numbers, `notes.md` in the folder, is taken over if there is any.
    """
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    runs = found.pop("runs", {})
    page, name = folder.with_suffix(".md"), folder.name
    figures = {"accuracy": _accuracy(found), "dropped": _maps(found)}
    pictures = {}
    for key, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / f"{key}.png", dpi=120)
            pictures[key] = f"![{key}]({name}/{key}.png)"
    notes = folder / "notes.md"
    parts = [INTRODUCTION, *_targets(found), notes.read_text() if notes.is_file() else ""]
    parts.append(pictures.get("accuracy", ""))
    for kind, title in KINDS.items():
        if kind in found:
            parts += [f"## {title}\n", *_judged(found[kind], runs)]
        if (general := f"{kind}-mixed") in found:
            parts += [f"### {title}: the policies of the mixture\n", *_judged(found[general], runs)]
    if "mixed" in found:
        parts += _dropped(found["mixed"], pictures.get("dropped", ""))
    parts += _plain(found)
    parts += _compared(found, "partition", "Partitions, by what oracles do with them")
    parts += _compared(found, "fill", "Fills")
    parts += _alternating(found, runs)
    parts.append(_cost(found, runs))
    page.write_text("\n".join(part.rstrip("\n") + "\n" for part in parts if part))
    return page


def _row(found: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The row of a policy; of runs NAME-0, NAME-1, ... their mean, or the only one."""
    rows = {row["name"]: row for row in found.get("policies", [])}
    means = [
        row
        for key, row in rows.items()
        if re.fullmatch(rf"{re.escape(name)}(/last)?, \d+ seeds", key)
    ]
    pattern = rf"{re.escape(name)}-\d+(/last)?"
    single = [row for key, row in rows.items() if re.fullmatch(pattern, key)]
    return next(iter([*means, *single, *([rows[name]] if name in rows else [])]), None)


def _number(value: float | None, sign: bool = False) -> str:
    return "" if value is None else f"{100 * value:{'+' if sign else ''}.1f}"


def _with_interval(entry: dict[str, Any] | None, sign: bool = False) -> str:
    if entry is None:
        return ""
    low, high = entry["interval_95"]
    return f"{_number(entry['mean'], sign)} [{_number(low)}, {_number(high)}]"


def _change(row: dict[str, Any], other: str, key: str = "accuracy") -> str:
    return _with_interval(row["differences"].get(other, {}).get(key), sign=True)


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _policies(found: dict[str, Any]) -> str:
    rows = []
    for row in found["policies"]:
        accuracy = {
            "mean": row["metrics"]["accuracy"],
            "interval_95": row["intervals_95"]["accuracy"],
        }
        rows.append(
            [
                row["name"],
                _number(row.get("dropped", {}).get("kept", 1)),
                _with_interval(accuracy),
                _change(row, "keep-all"),
                _change(row, "fixed"),
                _number(row.get("recovered")),
                _number(row["metrics"]["tar@far=0.001"]),
                _with_interval(row["rank1"]),
                _change(row, "keep-all", "rank1"),
            ]
        )
    headers = ["policy", "kept %", "accuracy %", "to keep-all", "to fixed", "recovered %"]
    return _table([*headers, "TAR @ FAR 0.1 %", "rank-1 %", "to keep-all"], rows)


def _judged(found: dict[str, Any], runs: dict[str, Any]) -> Iterator[str]:
    yield _policies(found)
    if "normalized" in found["policies"][0]:
        yield "Relative to strangers:\n"
        yield _relative(found)
    yield _origin(found, runs)


def _relative(found: dict[str, Any]) -> str:
    """The table of pairs judged relative to how like each face is to strangers."""
    accuracy = {row["name"]: row["normalized"]["metrics"]["accuracy"] for row in found["policies"]}
    gain = accuracy.get("oracle-occluder", 0) - accuracy["keep-all"]
    rows = []
    for row in found["policies"]:
        metrics, intervals = row["normalized"]["metrics"], row["normalized"]["intervals_95"]
        mean = metrics["accuracy"]
        rows.append(
            [
                row["name"],
                _with_interval({"mean": mean, "interval_95": intervals["accuracy"]}),
                _change(row, "keep-all", "normalized accuracy"),
                _change(row, "fixed", "normalized accuracy"),
                _number((mean - accuracy["keep-all"]) / gain if gain > 0 else None),
                _number(metrics["tar@far=0.001"]),
                _change(row, "keep-all", "normalized tar@far=0.001"),
            ]
        )
    headers = ["policy", "accuracy %", "to keep-all", "to fixed", "recovered %"]
    return _table([*headers, "TAR @ FAR 0.1 %", "to keep-all"], rows)


def _origin(found: dict[str, Any], runs: dict[str, Any]) -> str:
    """How a table was made: the commands of its trained rows, and its own."""
    command = shlex.join(["python", "-m", "benchmarks.policies", *found["arguments"]])
    commands: list[str] = []
    seen: set[str] = set()

    def add(user: str) -> None:
        """The runs whose files a command names, those that they start from first."""
        for name, run in runs.items():
            if name not in seen and re.search(rf"/{name}(/| |$)", user):
                seen.add(name)
                add(run["command"])
                commands.append(run["command"])

    add(command)
    ways = len(found["options"]["occlusion_seeds"])
    text = "\n".join([*commands, command])
    return (
        f"{found['pairs']} pairs ({ways} {'occlusions' if ways > 1 else 'occlusion'} of each), "
        f"{found['probes']} probes for rank-1; "
        f"made in {found['seconds']:.0f} s at commit {found['environment']['commit']} by\n\n"
        f"```bash\n{text}\n```"
    )


def _targets(found: dict[str, Any]) -> Iterator[str]:
    """What was asked for, and whether the numbers show it."""
    lines = []

    def recovered(kind: str, name: str) -> float | None:
        row = _row(found.get(kind, {}), name)
        return None if row is None else row.get("recovered")

    def gain(
        kind: str, name: str, other: str = "keep-all", what: str = "accuracy"
    ) -> dict[str, Any] | None:
        row = _row(found.get(kind, {}), name)
        return None if row is None else row["differences"].get(other, {}).get(what)

    def say(text: str, met: bool | None, seen: str) -> None:
        verdict = {True: "met", False: "**missed**", None: "not measured"}[met]
        lines.append([text, verdict, seen])

    share = recovered("mask", "mask")
    met = None if share is None else share >= 0.8
    say("masks: at least 80 % recovered", met, "" if met is None else f"{_number(share)} %")
    share, found_gain = recovered("patch", "patch"), gain("patch", "patch")
    met = None
    if share is not None and found_gain is not None:
        met = share >= 0.5 and found_gain["interval_95"][0] > 0
    seen = "" if met is None else f"{_number(share)} %, {_with_interval(found_gain, True)}"
    say("patches: at least 50 % recovered, the interval above zero", met, seen)
    for table, name in (
        ("sunglasses", "sunglasses"),
        ("sunglasses-mixed", "mixed"),
        ("clean", "mixed"),
    ):
        cost = gain(table, name)
        met = None if cost is None else cost["mean"] >= -0.002
        kind = table.removesuffix("-mixed")
        text = f"{kind}, policy trained on {name}: costs at most 0.2"
        say(text, met, _with_interval(cost, True))
    for what, called in (
        ("accuracy", "accuracy"),
        ("normalized accuracy", "accuracy relative to strangers"),
        ("rank1", "rank-1"),
    ):
        for other in ("keep-all", "fixed"):
            more = gain("mixed", "mixed", other, what)
            met = None if more is None else more["interval_95"][0] > 0
            text = f"mixture: {called} above {other}, the interval above zero"
            say(text, met, _with_interval(more, True))
    together = found.get("alternating-mixed", {})
    text = "alternating: at least 50 % of what the mixture costs recovered"
    rows = [_row(together, name) for name in ("alternating", "clean", "keep-all")]
    values = [row["metrics"]["accuracy"] for row in rows if row is not None]
    if len(values) < 3 or values[1] <= values[2]:
        say(text, None, "")
    else:
        own, most, least = values
        controls = [_row(together, name) for name in ("random-masks", "unmasked")]
        # With the agent's masks or without, whichever is better.
        found_all = [own] + [
            max(row["metrics"]["accuracy"], row["full"]["accuracy"])
            for row in controls
            if row is not None
        ]
        shares = [(accuracy - least) / (most - least) for accuracy in found_all]
        with_agent, *without = (f"{_number(value)} %" for value in shares)
        seen = f"{with_agent} (random masks, unmasked: {', '.join(without)})"
        say(text, shares[0] >= 0.5 and shares[0] > max(shares[1:], default=0), seen)
    yield "## What was asked, and what was found\n"
    yield _table(["asked", "", "found, in percent or points"], lines)


def _dropped(found: dict[str, Any], picture: str) -> Iterator[str]:
    row = _row(found, "mixed")
    if row is None:
        return
    yield "## What is dropped when\n"
    yield (
        "The policy trained on the mixture, on people it has not seen: how many faces lose "
        "anything, and how much of the occluder and of the rest of the picture is dropped. Rank-1 "
        "by occluder, keep-all and policy.\n"
    )
    keep, lines = _row(found, "keep-all"), []
    for kind, entry in row["dropped"]["kinds"].items():
        before = keep and keep["rank1"]["by_occluder"].get(kind)
        after = row["rank1"]["by_occluder"].get(kind)
        parts = [entry["faces"], entry.get("occluder"), entry.get("rest"), before, after]
        lines.append([kind, *map(_number, parts)])
    headers = ["occluder", "faces %", "of the occluder %", "of the rest %"]
    yield _table([*headers, "rank-1 keep-all %", "rank-1 policy %"], lines)
    yield picture


def _plain(found: dict[str, Any]) -> Iterator[str]:
    if "plain" not in found:
        return
    yield "## The recognizer as it comes\n"
    yield (
        "The same pairs under the mixture by the recognizer before it was used to holes: what "
        "dropping exactly the occluder would gain.\n"
    )
    yield _policies(found["plain"])
    yield _origin(found["plain"], {})


def _compared(found: dict[str, Any], what: str, title: str) -> Iterator[str]:
    chosen = {k: v for k, v in found.items() if k.startswith(f"{what}-")}
    if not chosen:
        return
    yield f"## {title}\n"
    yield "On the mixture, people for choosing: accuracy, and in brackets kept pixels, percent.\n"
    names = list(dict.fromkeys(r["name"] for v in chosen.values() for r in v["policies"]))
    lines = []
    for key, value in chosen.items():
        cells = [key.removeprefix(f"{what}-")]
        for name in names:
            row = _row(value, name)
            kept = "" if row is None else f" ({_number(row['dropped']['kept'])})"
            cells.append("" if row is None else f"{_number(row['metrics']['accuracy'])}{kept}")
        lines.append(cells)
    yield _table([what, *names], lines)
    yield _origin(next(iter(chosen.values())), {})


def _alternating(found: dict[str, Any], runs: dict[str, Any]) -> Iterator[str]:
    if "alternating-mixed" not in found:
        return
    yield "## Recognizer and agent trained in turn\n"
    yield (
        "After the recognizer's turn on random holes and the agent's on the mixture (above), it is "
        "the recognizer's again: it is trained on occluded faces masked by the agent "
        "(`alternating`) or, for as many steps, on randomly masked (`random-masks`) and on "
        "unmasked ones (`unmasked`), to make of them what it made of the uncovered face and to "
        "tell the training people apart. Then it is the agent's: in all three, the mixture's agent "
        "is trained further, as long, beside the recognizer that came of it. *Masked* is the "
        "accuracy of what the agent leaves, *full* that of the full image, by the trained "
        "recognizer; differences are to the frozen one with everything kept.\n"
    )
    for kind in ("mixed", "clean"):
        if f"alternating-{kind}" not in found:
            continue
        lines = []
        for row in found[f"alternating-{kind}"]["policies"]:
            full = row["full"]
            cells = [row["name"], _number(row["metrics"]["accuracy"]), _change(row, "keep-all")]
            cells += [_number(full["accuracy"]), _with_interval(full.get("to_keep-all"), True)]
            lines.append(cells)
        yield f"Occlusion: {kind}\n"
        yield _table(["recognizer", "masked", "to keep-all", "full", "to keep-all"], lines)
        row = _row(found[f"alternating-{kind}"], "alternating")
        others = [
            other for other in (row or {"differences": {}})["differences"] if "seeds" in other
        ]
        if row is not None and others:
            yield "What the agent leaves, after training in turn, less:\n"
            lines = [[other, _change(row, other), _change(row, other, "rank1")] for other in others]
            yield _table(["", "accuracy", "rank-1"], lines)
    yield _origin(found["alternating-mixed"], runs)


def _cost(found: dict[str, Any], runs: dict[str, Any]) -> str:
    judging = sum(value.get("seconds", 0) for value in found.values())
    training = sum(run["seconds"] for run in runs.values())
    preparing = sum(run.get("preparing", 0) for run in runs.values())
    machine = next(iter(found.values()))["environment"]["machine"] if found else {}
    rows = [
        [name, str(run["steps"]), f"{run['recognizer_calls']:.0f}", f"{run['seconds']:.0f}"]
        for name, run in runs.items()
    ]
    table = _table(["run", "faces", "recognizer calls", "seconds"], rows)
    made = f", making what they are trained on {preparing / 60:.0f}" if preparing else ""
    return (
        f"## Time\n\nTrainings took {training / 60:.0f} minutes in all{made}, judging "
        f"{judging / 60:.0f} ({machine.get('processor', '')}, {machine.get('cores', '')} cores). "
        "Everything is made, or gone on with, by `python -m benchmarks.real_faces --data FOLDER`, "
        f"and tried out in minutes with `--reduced true`.\n\n{table}"
    )


def _accuracy(found: dict[str, Any]) -> Figure | None:
    """Accuracy of every policy by kind of occlusion, beside kept pixels."""
    # Tables of their own: they may be by different recognizers.
    kinds = [name for kind in KINDS for name in (kind, f"{kind}-mixed") if name in found]
    if not kinds:
        return None
    rows = max(len(found[kind]["policies"]) for kind in kinds)
    figure = Figure(figsize=(10, len(kinds) * (0.22 * rows + 0.8)), layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False, width_ratios=(3, 2))
    for (bars, scatter), kind in zip(axes, kinds, strict=True):
        means = {
            row["name"].partition(", ")[0] for row in found[kind]["policies"] if "seeds" in row
        }
        last = 0.0
        for place, row in enumerate(found[kind]["policies"]):
            mean = 100 * row["metrics"]["accuracy"]
            low, high = (100 * v for v in row["intervals_95"]["accuracy"])
            colour = "tab:orange" if row.get("run") else "tab:blue"
            error = [[mean - low], [high - mean]]
            bars.errorbar(mean, place, xerr=error, fmt="o", ms=4, color=colour)
            if re.sub(r"-\d+", "", row["name"]) in means and "seeds" not in row:
                continue  # the mean stands for it: too many points in one place
            kept = 100 * row.get("dropped", {}).get("kept", 1)
            scatter.plot(kept, mean, "o", ms=4, color=colour)
            # Numbers of neighbours apart: the better of two in a row has it above, the other below,
            # trained agents to the left.
            at, side = (
                ((-3, 4), "right") if row.get("run") else ((4, 2 if mean > last else -8), "left")
            )
            last = mean
            how = {"textcoords": "offset points", "fontsize": 7, "ha": side}
            scatter.annotate(str(place + 1), (kept, mean), at, **how)
        names = [f"{row['name']}  {n}" for n, row in enumerate(found[kind]["policies"], 1)]
        bars.set_yticks(range(len(names)), names, fontsize=7)
        bars.invert_yaxis()
        title = kind.replace("-mixed", ", the policies of the mixture")
        bars.set_title(title, fontsize=9, loc="left")
        bars.grid(axis="x", alpha=0.3)
        scatter.grid(alpha=0.3)
        scatter.margins(0.15)
        scatter.locator_params(axis="x", nbins=6)
        scatter.set_ylabel("accuracy, %", fontsize=8)
    axes[-1][0].set_xlabel("verification accuracy, % (95 % interval over people)")
    axes[-1][1].set_xlabel("kept pixels, % (orange: trained agents)")
    return figure


def _maps(found: dict[str, Any]) -> Figure | None:
    """How often each place of an aligned face is dropped, by what covers it."""
    row = _row(found.get("mixed", {}), "mixed")
    if row is None:
        return None
    kinds = row["dropped"]["kinds"]
    figure = Figure(figsize=(1.7 * len(kinds) + 1, 2.2), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axis, (kind, entry) in zip(axes, kinds.items(), strict=True):
        image = axis.imshow(np.array(entry["map"]), vmin=0, vmax=100, cmap="viridis")
        axis.set_title(kind, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=axes, label="faces that lose it, %", shrink=0.8)
    return figure
