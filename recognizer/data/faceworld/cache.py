"""Pictures of the face world, drawn once by several processes and memory-mapped afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
from tqdm import tqdm

from recognizer.data.disk_cache import cache_folder, make_once, new_array
from recognizer.data.faceworld.canvas import SIZE
from recognizer.data.faceworld.render import (
    NUISANCES,
    VERSION,
    FaceWorld,
    FaceWorldConfig,
)

# Picture numbers of a split start here, so splits never share a picture. Agents train on other
# pictures than their recognizer did: those it has learnt by heart need no help.
SPLITS = {
    "recognizer": 0,
    "val": 1_000_000_000,
    "test": 2_000_000_000,
    "train": 3_000_000_000,
}
_CHUNK = 50
_ARRAYS = {
    "images": (np.uint8, (3, SIZE, SIZE)),
    "parsing": (np.uint8, (SIZE, SIZE)),
    "occluders": (np.uint8, (SIZE, SIZE)),
    "present": (np.bool_, (len(NUISANCES),)),
}


def faceworld_arrays(
    split: str,
    images_per_identity: int,
    identities: int,
    seed: int,
    config: FaceWorldConfig | None = None,
    workers: int | None = None,
) -> dict[str, np.ndarray]:
    """The memory-mapped arrays behind `load_faceworld`, and which nuisances are `present`."""
    world = FaceWorld(seed, identities, config)
    recipe = {
        "version": VERSION,
        "seed": seed,
        "identities": identities,
        "split": split,
        "images_per_identity": images_per_identity,
        "config": asdict(world.config),
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"faceworld-{split}-{digest}"

    def make(unfinished: Path) -> None:
        (unfinished / "recipe.json").write_text(json.dumps(recipe, indent=1))
        _draw(unfinished, identities * images_per_identity, f"drawing {split} faces", workers)

    make_once(folder, make)
    # copy-on-write, because torch has no read-only tensors
    return {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in _ARRAYS}


def _draw(folder: Path, n: int, description: str, workers: int | None) -> None:
    """Draw the `n` faces of the recipe in a folder, by `workers` processes (default: all cores).

    The processes are programs of their own, not children of `multiprocessing`: those import the
    user's main module again, which breaks every script without a `__main__` guard.
    """
    for name, (dtype, shape) in _ARRAYS.items():
        new_array(folder / f"{name}.npy", (n, *shape), dtype)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        workers = max(1, min(cores, n // 200))
    package = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    program = f"import sys; from {__name__} import worker; worker(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(folder), str(workers)]
    with tqdm(total=n, desc=description, unit="face") as bar:
        processes = [
            subprocess.Popen(
                [*command, str(number)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
            for number in range(workers)
        ]
        try:
            threads = [Thread(target=_follow, args=(p, bar)) for p in processes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if failed := [p.returncode for p in processes if p.wait()]:
                raise RuntimeError(f"drawing faces failed with exit status {failed[0]}, see above")
        finally:
            for process in processes:
                process.kill()
                process.communicate()  # waits for its end and closes the pipe


def _follow(process: subprocess.Popen[str], bar: tqdm) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        bar.update(int(line))


def worker(path: str, workers: str, number: str) -> None:
    """Draw every `workers`-th chunk of the recipe in a folder; prints how many faces are done."""
    folder = Path(path)
    cv2.setNumThreads(1)
    recipe = json.loads((folder / "recipe.json").read_text())
    identities = recipe["identities"]
    world = FaceWorld(recipe["seed"], identities, FaceWorldConfig(**recipe["config"]))
    n = identities * recipe["images_per_identity"]
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
    for start in range(int(number) * _CHUNK, n, int(workers) * _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, n))
        numbers = rows // identities + SPLITS[recipe["split"]]
        for name, values in world.render_batch(rows % identities, numbers).items():
            arrays[name][rows] = values
        print(len(rows), flush=True)
