"""Folders of arrays that are made once and kept: where they are, and how they appear whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """The folder `$SARFACE_CACHE`, by default `~/.cache/sarface`."""
    root = os.environ.get("SARFACE_CACHE") or Path.home() / ".cache" / "sarface"
    return Path(root).expanduser()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete: an unfinished one is never mistaken for it.

    When another process made the same folder meanwhile, that one stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
