"""Encoded images from strangers: checked before they are decoded, decoded in threads."""

import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

from recognizer.data.problems import DataError, OnError, Problems

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# A byte of deflate can hold at most 1032 grey pixels and one of JPEG about 512. A file that
# announces more is hostile, and decoding it would only allocate memory.
_PIXELS_PER_BYTE = 1032
_STANDALONE = frozenset([0x01, *range(0xD0, 0xD8)])
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

Encoded = bytes | bytearray | memoryview


def image_size(data: Encoded) -> tuple[int, int]:
    """Height and width of an encoded JPEG or PNG, read from its header without decoding.

    Raises:
        DataError: Not a JPEG or PNG, cut off, or announcing more pixels than its bytes can hold.
    """
    data = bytes(data) if isinstance(data, memoryview) else data
    if not data:
        raise DataError("the image is empty")
    if data[:3] == b"\xff\xd8\xff":
        height, width = _jpeg_size(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        # The last chunk is its name and a checksum of 4 bytes.
        if len(data) < 33 or not 0 < data.rfind(b"IEND") <= len(data) - 8:
            raise DataError(f"the PNG image is cut off after {len(data)} bytes")
        width, height = struct.unpack_from(">II", data, 16)
    else:
        raise DataError(f"neither a JPEG nor a PNG image: it starts with {data[:8].hex(' ')}")
    if not 0 < height * width <= _PIXELS_PER_BYTE * len(data):
        raise DataError(f"{len(data)} bytes cannot hold the {width}x{height} pixels they announce")
    return height, width


def _jpeg_size(data: bytes | bytearray) -> tuple[int, int]:
    # ITU T.81, B.1.1: segments of 0xFF, marker, big-endian length; the frame header has the size.
    position, size = 2, len(data)
    while position + 9 <= size:
        if data[position] != 0xFF:
            raise DataError(f"the JPEG header is broken at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            # Entropy-coded data cannot hold an end-of-image marker, so one must follow it.
            if data.rfind(b"\xff\xd9") < position:
                break
            return (data[position + 5] << 8 | data[position + 6]), (
                data[position + 7] << 8 | data[position + 8]
            )
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    raise DataError(f"the JPEG image is cut off after {size} bytes")


def decode_image(data: Encoded) -> np.ndarray:
    """Decode a JPEG or PNG to uint8 BGR `(H, W, 3)`.

    Raises:
        DataError: See `image_size`; or the decoder refuses the image.
    """
    image_size(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError(f"not decodable: {error.err}") from None
    if image is None:
        raise DataError("not decodable: the decoder refuses it")
    return image


def decode_images(
    read: Callable[[int], Encoded],
    names: Sequence[str],
    size: int | None = None,
    on_error: OnError = "raise",
    threads: int = 0,
    what: str = "images",
) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    """Decode many images of one size in threads (`cv2` releases the interpreter's lock).

    Args:
        read: Gives the encoded image number `i` of `len(names)`.
        names: How an error calls each of them.
        size: Height and width to resize to; None keeps the size, which must then be the same.
        on_error: Raise one `DataError` for all of them, or leave out what is unreadable.
        threads: Decoding threads; 0 takes one for every core.
        what: How an error calls the whole.

    Returns:
        Images uint8 BGR `(N, 3, H, W)`, the numbers `(N,)` of those that were read, and the
        problems of the others.

    Raises:
        DataError: An image is unreadable or of another size, unless `on_error` is `"skip"`.
    """
    problems = Problems(on_error)

    def decode(index: int) -> np.ndarray | str:
        try:
            image = decode_image(read(index))
        except (DataError, OSError) as error:
            return f"{names[index]}: {error}"
        if size is not None and image.shape[:2] != (size, size):
            way = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_LINEAR
            image = cv2.resize(image, (size, size), interpolation=way)
        return image

    out: np.ndarray | None = None
    kept: list[int] = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        # Blocks bound what is decoded ahead of the copy into `out`.
        for start in range(0, len(names), 1024):
            block = range(start, min(start + 1024, len(names)))
            for index, image in zip(block, pool.map(decode, block, chunksize=32), strict=True):
                if isinstance(image, str):
                    problems.add(image)
                    continue
                if out is None:
                    try:
                        out = np.empty((len(names), 3, *image.shape[:2]), np.uint8)
                    except MemoryError as error:
                        raise DataError(
                            f"{what}: too large, from {names[index]}: {error}"
                        ) from None
                if image.shape[:2] != out.shape[2:]:
                    (height, width), (rows, columns) = image.shape[:2], out.shape[2:]
                    problems.add(
                        f"{names[index]}: {width}x{height} pixels, but {names[kept[0]]} "
                        f"has {columns}x{rows}; give a size to resize to"
                    )
                    continue
                out[len(kept)] = image.transpose(2, 0, 1)
                kept.append(index)
    found = problems.settle(what)
    images = np.empty((0, 3, size or 0, size or 0), np.uint8) if out is None else out[: len(kept)]
    return torch.from_numpy(images), np.array(kept, np.int64), found


def find_image(stem: Path) -> Path | None:
    """The file `stem` + one of `IMAGE_SUFFIXES`, or None when there is none."""
    for suffix in IMAGE_SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if is_file(path):
            return path
    return None


def is_file(path: Path) -> bool:
    """Whether there is a file; names that the system cannot hold name none."""
    try:
        return path.is_file()
    except OSError:
        return False
