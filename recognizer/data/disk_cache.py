"""Folders of arrays that are made once and kept: where they are, and how they appear whole."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike


def cache_folder() -> Path:
    """The folder `$SARFACE_CACHE`, by default `~/.cache/sarface`."""
    root = os.environ.get("SARFACE_CACHE") or Path.home() / ".cache" / "sarface"
    return Path(root).expanduser()


def make_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Have a folder made unless it is there; says whether it was made now.

    It gets its name when it is complete: an unfinished one is never mistaken for it. Another
    process that wants the same folder waits for it, and what one that was killed left behind is
    removed.

    Args:
        folder: where it shall be.
        make: writes its files into the folder it is given.
    """
    if folder.is_dir():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return False
        for left in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            make(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return True


def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Zeros in a new memory-mapped `.npy` file, whose room on the disk is taken now.

    Without that, a disk that gets full kills the process by a bus error at some later write.

    Raises:
        OSError: with the size, where there is no room.
    """
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):  # not on every system
        with path.open("r+b") as file:
            size = path.stat().st_size
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                what = f"{error.strerror} for {size / 1e9:.1f} GB"
                raise OSError(error.errno, what, str(path)) from None
    return array
