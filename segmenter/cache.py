"""Label maps on disk: every image is parsed once per parser."""

import hashlib
import os
import sqlite3
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from segmenter.labels import CLASSES
from segmenter.parser import Parser

_BATCH = 256  # images between two commits: what a kill can lose


def default_cache() -> Path:
    """Return the cache file used by default, in `$SARFACE_CACHE` or `~/.cache/sarface`."""
    root = os.environ.get("SARFACE_CACHE") or Path.home() / ".cache" / "sarface"
    return Path(root).expanduser() / "parsing.sqlite"


def parse_cached(
    parser: Parser,
    images: Tensor,
    path: str | Path | None = None,
    progress: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Return the label maps of images, parsing only those that were never parsed before.

    `images` are uint8 BGR `(N, 3, H, W)`, the result uint8 `(N, H, W)` on the CPU. Maps are kept in
    one SQLite file (`path`, by default `default_cache()`) under a hash of the image's pixels and
    the parser's version, so that neither file names nor order matter. Every batch is committed by
    itself: a killed run continues where it was, and several processes may share the file. Equal
    images are parsed once. The result is `out`, which may be memory-mapped, when that is given.
    Raises what `Parser.parse` raises, and `ValueError` when the file is no
    cache.
    """
    path = default_cache() if path is None else Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images.shape[2:]
    labels = torch.empty((len(images), height, width), dtype=torch.uint8) if out is None else out
    try:
        with closing(sqlite3.connect(path, timeout=60)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS labels (key BLOB PRIMARY KEY, map BLOB)")
            chunks = list(range(0, len(images), _BATCH))
            new = 0
            with tqdm(
                total=len(images),
                desc=f"parsing ({parser.name})",
                unit="face",
                disable=not progress,
            ) as bar:
                for start in chunks:
                    part = images[start : start + _BATCH]
                    new += _fill(parser, part, labels[start : start + _BATCH], database)
                    bar.update(len(part))
                    bar.set_postfix(new=new)
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path}: not usable as a cache of label maps ({error})") from None
    return labels


def _fill(parser: Parser, images: Tensor, labels: Tensor, database: sqlite3.Connection) -> int:
    """Write the maps of `images` into `labels`; return how many had to be parsed."""
    size = (images.shape[2], images.shape[3])
    with ThreadPoolExecutor() as pool:
        keys = list(pool.map(lambda image: _key(parser, image), images))
        stored = _lookup(database, set(keys))
        read = pool.map(lambda row: (row[0], _unpack(row[1], size)), stored)
        # A damaged entry counts as absent, and is parsed again.
        maps = {key: found for key, found in read if found is not None}
        missing = {key: i for i, key in enumerate(keys) if key not in maps}
        if missing:
            parsed = parser.parse(images[list(missing.values())]).cpu().numpy()
            maps.update(zip(missing, parsed, strict=True))
            packed = pool.map(lambda found: zlib.compress(found.tobytes(), 1), parsed)
            with database:
                rows = zip(missing, packed, strict=True)
                database.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?)", rows)
    labels.copy_(torch.from_numpy(np.stack([maps[key] for key in keys])))
    return len(missing)


def _key(parser: Parser, image: Tensor) -> bytes:
    pixels = image.cpu().contiguous().numpy()
    digest = hashlib.blake2b(f"{parser.version} {pixels.shape}".encode(), digest_size=16)
    digest.update(pixels.data)
    return digest.digest()


def _lookup(database: sqlite3.Connection, keys: set[bytes]) -> list[tuple[bytes, bytes]]:
    marks = ",".join("?" * len(keys))
    query = f"SELECT key, map FROM labels WHERE key IN ({marks})"
    return database.execute(query, list(keys)).fetchall()


def _unpack(packed: bytes, size: tuple[int, int]) -> np.ndarray | None:
    pixels = size[0] * size[1]
    try:
        # Never more than the map and one byte, whatever the entry would expand to.
        flat = np.frombuffer(zlib.decompressobj().decompress(packed, pixels + 1), np.uint8)
    except zlib.error:
        return None
    if flat.size != pixels or flat.max() >= len(CLASSES):
        return None
    return flat.reshape(size)
