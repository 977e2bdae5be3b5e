"""Figures of `benchmarks.throughput`."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

TITLES = {"faceworld": "embedded recognizer", "resnet29": "ResNet-29", "ir_50": "IR-50"}
# Colour by contender, the same in every panel.
STYLES = {
    "eager": ("tab:gray", "o-"),
    "eager, system's allocator": ("tab:gray", "o:"),
    "channels-last": ("tab:olive", "s-"),
    "engine": ("tab:blue", "^-"),
    "engine, bfloat16": ("tab:blue", "^:"),
    "vector step": ("tab:red", "D-"),
    "vector step, bfloat16": ("tab:red", "D:"),
    "SyncVectorEnv": ("tab:green", "v--"),
    "AsyncVectorEnv": ("tab:purple", "x--"),
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Rates against batch size, parts of a vector step, and parts of a training step."""
    rates = {k.removeprefix("rates, "): v for k, v in results.items() if k.startswith("rates")}
    parts = {k.removeprefix("parts of a step, "): v for k, v in results.items() if "parts of" in k}
    training = _rows(results.get("training steps", {}))
    columns = max(len(rates), 1)
    figure = plt.figure(figsize=(max(9, 4.2 * columns), 7.4), layout="constrained")
    # No empty half while sections 2 and 6 have not been run.
    halves = np.asarray(figure.subfigures(2 if parts or training else 1, 1, squeeze=False))[:, 0]
    upper = halves[0]
    for axis, (name, measured) in zip(
        np.atleast_1d(upper.subplots(1, columns)), rates.items(), strict=False
    ):
        for what, (colour, style) in STYLES.items():
            points = [(int(n), r[what]) for n, r in _rows(measured).items() if what in r]
            if not points:
                continue
            x, rows = zip(*points, strict=True)
            y = np.array([row["per_second"] for row in rows])
            low, high = np.array([row["quartiles"] for row in rows]).T
            axis.errorbar(x, y, (y - low, high - y), None, style, color=colour, label=what, ms=5)
        axis.set(xscale="log", yscale="log", title=TITLES.get(name, name))
        axis.set(xlabel="batch size or number of environments", ylabel="faces a second")
        axis.grid(True, which="both", alpha=0.2)
        axis.set_xticks([1, 16, 64, 256], ["1", "16", "64", "256"])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.minorticks_off()
    handles: dict[str, Any] = {}
    for axis in upper.axes:
        handles |= {
            label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
    upper.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9)
    if len(halves) > 1:
        _draw_parts(halves[1], parts, training)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_parts(lower: Any, parts: dict[str, Any], training: dict[str, Any]) -> None:
    left, right = lower.subplots(1, 2)
    bars = {
        f"{TITLES.get(name, name)}, {n}": row
        for name, measured in parts.items()
        for n, row in _rows(measured).items()
    }
    _stacked(left, bars, ("recognizer", "masking", "observations", "rest"), relative=True)
    left.set_xlabel("share of a vector step")
    _stacked(right, training, ("environment", "policy forward", "update"))
    right.set_xlabel("milliseconds a face of a training step")


def _rows(measured: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in measured.items() if k != "environment"}


def _stacked(axis: Any, rows: dict[str, Any], parts: tuple[str, ...], relative=False) -> None:
    if not rows:
        axis.set_axis_off()
        return
    left = np.zeros(len(rows))
    for part in parts:
        total = [sum(row[p] for p in parts) if relative else 1 for row in rows.values()]
        width = np.array([row[part] for row in rows.values()]) / np.array(total)
        axis.barh(list(rows), width, left=left, label=part)
        left += width
    axis.invert_yaxis()
    axis.legend(fontsize=8, ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1))
