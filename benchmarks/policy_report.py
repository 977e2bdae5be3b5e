"""The table and the figures of `python -m benchmarks.policies`."""

from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import print_table


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print one line a policy."""

    def cell(value: float | None, interval: Any = None, sign: bool = False) -> str:
        if value is None:
            return ""
        text = f"{100 * value:{'+' if sign else ''}.1f}"
        if interval is None:
            return text
        low, high = (100 * v for v in interval)
        return f"{text} [{low:.1f}, {high:.1f}]"

    def change(row: dict[str, Any], other: str, key: str) -> str:
        found = row["differences"].get(other, {}).get(key)
        return cell(found["mean"], found["interval_95"], True) if found else ""

    headers = ["policy", "kept", "accuracy", "full", "to keep-all", "to fixed", "recovered"]
    headers += ["TAR@FAR 1e-3", "rank-1", "full", "to keep-all"]
    table = []
    for row in rows:
        metrics, rank1 = row["metrics"], row["rank1"]
        table.append(
            [
                row["name"],
                cell(row.get("dropped", {}).get("kept", 1)),
                cell(metrics["accuracy"], row["intervals_95"].get("accuracy")),
                cell(row["full"]["accuracy"]),
                change(row, "keep-all", "accuracy"),
                change(row, "fixed", "accuracy"),
                cell(row.get("recovered")),
                cell(metrics["tar@far=0.001"]),
                cell(rank1["mean"], rank1["interval_95"]),
                cell(row["full"]["rank1"]),
                change(row, "keep-all", "rank1"),
            ]
        )
    print_table(headers, table)


def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Accuracy of every policy, and against the pixels it keeps."""
    figure = Figure(figsize=(10, 0.35 * len(rows) + 2), layout="constrained")
    bars, scatter = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, row in enumerate(rows):
        mean = 100 * row["metrics"]["accuracy"]
        low, high = (100 * v for v in row["intervals_95"].get("accuracy", [mean / 100] * 2))
        kept = 100 * row.get("dropped", {}).get("kept", 1)
        colour = "tab:orange" if row.get("run") else "tab:blue"
        bars.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour)
        scatter.plot(kept, mean, "o", color=colour)
        at = (4, 3 if place % 2 else -9)  # numbers of neighbours apart
        scatter.annotate(str(place + 1), (kept, mean), at, textcoords="offset points", fontsize=8)
    bars.set_yticks(range(len(rows)), [f"{row['name']}  {n}" for n, row in enumerate(rows, 1)])
    bars.invert_yaxis()
    bars.set_xlabel("verification accuracy, % (95 % interval over people)")
    bars.grid(axis="x", alpha=0.3)
    scatter.set_xlabel("kept pixels, %")
    scatter.set_ylabel("verification accuracy, %")
    scatter.margins(x=0.1, y=0.1)
    scatter.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def examples(shown: dict[str, Tensor], kinds: list[str]) -> Figure:
    """Faces as policies leave them: a row a policy, images uint8 BGR `(n, 3, H, W)`.

    Photographs of people: for looking at, not for publication.
    """
    names = 0.07 * max(map(len, shown))  # inches
    size = (1.1 * len(kinds) + names + 0.5, 1.25 * len(shown) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(shown), len(kinds), squeeze=False)
    for line, (name, images) in zip(axes, shown.items(), strict=True):
        line[0].set_ylabel(name, fontsize=7, rotation=0, ha="right")
        for axis, image, kind in zip(line, images, kinds, strict=True):
            axis.imshow(image.flip(0).permute(1, 2, 0).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            if axis in axes[0]:
                axis.set_title(kind, fontsize=7)
    return figure
