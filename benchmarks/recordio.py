"""How fast faces are read from RecordIO at random, beside MXNet 1.9.1, on one thread.

MXNet runs in an environment of its own (`make interop` creates it), as a second process that takes
turns with this one; the figures are medians over the turns. `read + decode` ends with a BGR array
here and with `mx.image.imdecode(...).asnumpy()` there, the path of AdaFace and SARFace.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import matplotlib

from benchmarks.common import RESULTS, ROOT, environment, print_table, write_results
from recognizer.data.face_records import FaceRecords
from recognizer.data.images import decode_image
from recognizer.data.problems import DataError

WORK = {"unpack": "read + unpack", "decode": "read + decode"}
TARGET = {"unpack": 3.0, "decode": 3.5}


class MXNet:
    """The process that reads the same records with MXNet."""

    def __init__(self, python: Path, records: Path) -> None:
        script = Path(__file__).with_name("recordio_mxnet.py")
        self._process = subprocess.Popen(
            [str(python), str(script), str(records)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MXNET_CPU_WORKER_NTHREADS": "1"},
        )
        self.versions = self._answer()

    def seconds(self, work: str, keys: list[int]) -> float:
        """Let it do the work once."""
        assert self._process.stdin is not None
        print(json.dumps({"work": work, "keys": keys}), file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the MXNet process ended with code {self._process.wait()}")
        return json.loads(line)


def own_seconds(faces: FaceRecords, work: str, keys: list[int]) -> float:
    """Do the work once with the project's own reader."""
    decode, unpack = work == "decode", faces.records.unpack
    start = time.perf_counter()
    for key in keys:
        _, data = unpack(key)
        if decode:
            decode_image(data)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print the table, write JSON and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = ROOT / os.environ.get("SARFACE_DATA", "../shared/data") / "faces_lfw_112x112"
    parser.add_argument("--data", type=Path, default=data, help="a .rec file or its folder")
    parser.add_argument(
        "--mxnet-python",
        type=Path,
        default=ROOT / ".venv-mxnet/bin/python",
        help="interpreter of the environment that has MXNet (default: .venv-mxnet)",
    )
    parser.add_argument("--repetitions", type=int, default=9, help="turns each takes (default 9)")
    parser.add_argument("--name", default="recordio", help="name of the files in results/")
    arguments = parser.parse_args()
    if not arguments.mxnet_python.is_file():
        sys.exit(
            f"error: no MXNet environment at {arguments.mxnet_python}; create it with "
            "`make interop`, or name its interpreter with --mxnet-python"
        )
    cv2.setNumThreads(1)
    try:
        faces = FaceRecords(arguments.data)
    except (DataError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    mxnet = MXNet(arguments.mxnet_python, faces.path)
    counts = {"unpack": 20000, "decode": 2000}
    rates: dict[str, dict[str, list[float]]] = {w: {"sarface": [], "mxnet": []} for w in WORK}
    for turn in range(arguments.repetitions + 1):
        for work, count in counts.items():
            keys = random.Random(turn).choices(faces.keys.tolist(), k=count)
            ours, theirs = own_seconds(faces, work, keys), mxnet.seconds(work, keys)
            if turn:  # the first turn warms the caches up
                rates[work]["sarface"].append(count / ours)
                rates[work]["mxnet"].append(count / theirs)
    mxnet.close()

    results, rows = {}, []
    for work, label in WORK.items():
        ours, theirs = (statistics.median(rates[work][who]) for who in ("sarface", "mxnet"))
        ratios = [a / b for a, b in zip(rates[work]["sarface"], rates[work]["mxnet"], strict=True)]
        ratio = statistics.median(ratios)
        results[work] = {
            "sarface_per_second": round(ours),
            "mxnet_per_second": round(theirs),
            "ratio": round(ratio, 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "target": TARGET[work],
        }
        span = f"{min(ratios):.1f} - {max(ratios):.1f}"
        rows.append([label, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ratio:.1f}", span, TARGET[work]])
    headers = ["random, one thread", "SARFace /s", "MXNet /s", "ratio", "range", "target"]
    print_table(headers, rows)
    payload = {
        "environment": environment(),
        "mxnet_environment": mxnet.versions,
        "data": {"file": f"{faces.path.parent.name}/{faces.path.name}", "images": len(faces)},
        "repetitions": arguments.repetitions,
        "results": results,
        "rates": {
            w: {who: [round(r) for r in v] for who, v in d.items()} for w, d in rates.items()
        },
    }
    print(f"wrote {write_results(arguments.name, payload)}")
    draw(rates, RESULTS / f"{arguments.name}.png")


def draw(rates: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Bars of the medians, with every turn as a dot."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(WORK), figsize=(7, 3), layout="constrained")
    for axis, (work, label) in zip(axes, WORK.items(), strict=True):
        for place, (who, name) in enumerate({"sarface": "SARFace", "mxnet": "MXNet 1.9.1"}.items()):
            values = rates[work][who]
            axis.bar(name, statistics.median(values), color=("tab:blue", "tab:gray")[place])
            axis.plot([place] * len(values), values, "k.", markersize=3)
        axis.set_title(label)
        axis.set_ylabel("images per second, one thread")
        axis.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
