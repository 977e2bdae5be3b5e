"""Figures of what policies keep."""

import io
from typing import Any

import matplotlib
import numpy as np
import torch

from agents.evaluation import Result

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_MOST_BARS = 24


def policy_figure(env: Any, results: list[Result], agent: str, faces: int = 6) -> bytes:
    """PNG of example faces and of how often each region is kept.

    Left, faces x (image, regions, kept by the agent, kept by the best oracle); right, for every
    selectable region, how often each policy keeps it on the faces that have it, or, where there
    are many regions, how often each pixel is kept.

    Args:
        env: the environment the results are from, with `unwrapped.panels(indices, masks)`.
        results: one a policy, on the same faces; the last is the best oracle.
        agent: name of the result to show.
        faces: how many examples.
    """
    by_name = {result.name: result for result in results}
    ours, oracle = by_name[agent], results[-1]
    # Half of the examples are faces that masking can help, so that there is something to see.
    gain = oracle.values["reward"] > 0
    helped, others = np.flatnonzero(gain), np.flatnonzero(~gain)
    rows = [*helped[: faces - faces // 3], *others[: faces // 3]]
    inner = env.unwrapped
    panels = [
        inner.panels(result.indices[rows], torch.from_numpy(result.masks[rows]))
        for result in (ours, oracle)
    ]
    figure = plt.figure(figsize=(13, 1.55 * len(rows)), layout="constrained")
    subfigures: Any = figure.subfigures(1, 2, width_ratios=[6.4, 6.6])
    left, right = subfigures
    axes = left.subplots(len(rows), 4, squeeze=False)
    titles = ["image", "regions", f"kept by {agent}", f"kept by {oracle.name}"]
    for i, row in enumerate(rows):
        image, regions, kept = panels[0][i]
        for axis, picture in zip(axes[i], (image, regions, kept, panels[1][i][2]), strict=True):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
        for axis, result in ((axes[i][2], ours), (axes[i][3], oracle)):
            right_now = bool(result.values["margin-correct"][row])
            colour = "tab:green" if right_now else "tab:red"
            for spine in axis.spines.values():
                spine.set(color=colour, linewidth=3)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    left.supxlabel("frame: green margin-correct, red not", fontsize=9)

    shown = [by_name[agent], *(r for r in results if "fixed" in r.name or r is oracle)]
    if len(inner.partition.selectable) <= _MOST_BARS:
        _bars(right, inner, shown)
    else:
        _maps(right, inner, shown)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _bars(figure: Any, inner: Any, shown: list[Result]) -> None:
    axis = figure.subplots()
    names = [inner.partition.names[r] for r in inner.partition.selectable]
    height = 0.8 / len(shown)
    for k, result in enumerate(shown):
        present = result.present.sum(0)
        rate = (result.masks & result.present).sum(0) / np.maximum(present, 1)
        where = np.arange(len(names)) + (k - (len(shown) - 1) / 2) * height
        axis.barh(where, np.where(present > 0, rate, 0), height, label=result.name)
    axis.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("how often the region is kept, of the faces that have it")
    axis.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))


def _maps(figure: Any, inner: Any, shown: list[Result]) -> None:
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, result in zip(axes, shown, strict=True):
        regions = inner.core.regions(torch.from_numpy(result.indices))
        kept = inner.partition.keep_pixels(regions, torch.from_numpy(result.masks))
        drawn = axis.imshow(kept.float().mean(0).cpu().numpy(), vmin=0, vmax=1)
        axis.set_title(result.name, fontsize=9)
        axis.axis("off")
    label = "how often a pixel is kept"
    figure.colorbar(drawn, ax=list(axes), label=label, location="bottom", shrink=0.5)
