"""Damaged and hostile files: a clear error or a skip that is counted, never anything else."""

import logging
import pickle
import struct
import tracemalloc
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recognizer.data.face_records import Face, FaceRecords, write_face_records
from recognizer.data.folder import read_landmarks, read_list
from recognizer.data.images import decode_image
from recognizer.data.problems import DataError
from recognizer.data.recordio import IRHeader, RecordFile, pack
from recognizer.data.recordio_writer import RecordWriter
from recognizer.data.verification_sets import read_bin, read_pairs

MAGIC = struct.pack("<I", 0xCED7230A)
HOSTILE = [0, 1, 4, 2**24, 2**29 - 1, 2**29, 2**30 + 8, 2**31 - 1, 2**32 - 1, 0xCED7230A]
IMAGES = [
    cv2.imencode((".jpg", ".png")[i % 2], np.full((6, 6, 3), 20 * i, np.uint8))[1].tobytes()
    for i in range(8)
]


def fuzz(examples: int):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def damage(draw, data: bytes) -> bytes:
    """`data` cut, with bits flipped, words replaced, or pieces left out or repeated."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        size = len(out)
        place = draw(st.integers(0, size))
        match draw(st.sampled_from(["cut", "flip", "word", "drop", "repeat", "magic"])):
            case "cut":
                del out[place:]
            case "flip" if place < size:
                out[place] ^= 1 << draw(st.integers(0, 7))
            case "word":
                place &= ~3
                out[place : place + 4] = struct.pack("<I", draw(st.sampled_from(HOSTILE)))
            case "drop":
                del out[place : place + draw(st.integers(1, 64))]
            case "repeat":
                out[place:place] = out[place : place + draw(st.integers(1, 64))]
            case "magic":
                place &= ~3
                word = draw(st.integers(0, 3)) << 29 | draw(st.integers(0, 64))
                out[place:place] = MAGIC + struct.pack("<I", word)
    return bytes(out)


@contextmanager
def frugal(size: int):
    """What runs inside may allocate in proportion to the file only."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * size + 2_000_000


@pytest.fixture(scope="module", autouse=True)
def silence():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A face set and a set of split records: name -> bytes."""
    folder = tmp_path_factory.mktemp("files")
    faces = [Face(data, i // 3, f"p{i // 3}/{i}.jpg") for i, data in enumerate(IMAGES)]
    write_face_records(folder / "train.rec", faces, (6, 6), aligned_labels=True)
    with RecordWriter(folder / "split.rec") as writer:
        for key in range(6):
            data = MAGIC * key + b"ab" * key + MAGIC + b"xyz"
            writer.write(key, pack(IRHeader(0, float(key), key, 0), data))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def named(error: DataError, what: object) -> None:
    assert str(what) in str(error)


def exercise_records(path, on_error) -> None:
    """Everything that reads a file of records; raises `DataError` and nothing else."""
    records = RecordFile(path, on_error=on_error)
    for key in records.keys.tolist():
        for read in (records.read, records.unpack):
            try:
                read(key)
            except DataError as error:
                named(error, f"{path}, record {key}, offset {records.offset(key)}: ")
    faces = FaceRecords(path, on_error=on_error)
    assert len(faces.labels) == len(faces)
    before = len(faces.problems)
    images, labels = faces.decode(size=6)
    assert len(images) == len(labels) == len(faces) - (len(faces.problems) - before)
    if faces.dialect == "insightface":
        assert (faces.identity_ranges[:, 0] <= faces.identity_ranges[:, 1]).all()


@pytest.mark.parametrize("name", ["train", "split"])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
@fuzz(250)
@given(data=st.data())
def test_damaged_records(tmp_path, files, name, index, on_error, data):
    path = tmp_path / f"{name}.rec"
    path.write_bytes(data.draw(damage(files[path.name])))
    if index:
        path.with_suffix(".idx").write_bytes(files[f"{name}.idx"])
    with frugal(path.stat().st_size):
        try:
            exercise_records(path, on_error)
        except DataError as error:
            named(error, path.with_suffix(""))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@fuzz(200)
@given(data=st.data())
def test_damaged_index(tmp_path, files, on_error, data):
    path = tmp_path / "train.rec"
    path.write_bytes(files["train.rec"])
    path.with_suffix(".idx").write_bytes(data.draw(damage(files["train.idx"])))
    with frugal(path.stat().st_size):
        try:
            exercise_records(path, on_error)
        except DataError as error:
            named(error, tmp_path)


@fuzz(250)
@given(data=st.data(), arrays=st.booleans(), protocol=st.integers(0, 5))
def test_damaged_bin(tmp_path, data, arrays, protocol):
    images = [np.frombuffer(image, np.uint8) for image in IMAGES] if arrays else IMAGES
    whole = pickle.dumps((images, [True, False] * 2), protocol)
    path = tmp_path / "a.bin"
    path.write_bytes(data.draw(damage(whole)))
    for on_error in ("raise", "skip"):
        with frugal(path.stat().st_size):
            try:
                pairs = read_bin(path, on_error=on_error)
                assert len(pairs) == 4 or on_error == "skip"
                assert pairs.readable("skip").decode(size=6).shape[1:] == (3, 6, 6)
            except DataError as error:
                named(error, path)


@fuzz(200)
@given(data=st.data(), number=st.integers(0, 1))
def test_damaged_image(data, number):
    damaged = data.draw(damage(IMAGES[number]))
    try:
        image = decode_image(damaged)
    except DataError:
        return
    assert image.dtype == np.uint8
    assert image.size <= 3 * 1032 * len(damaged)


@fuzz(200)
@given(data=st.data())
def test_damaged_text(tmp_path, data):
    contents = {
        "train.lst": b"1\ta/a_0001.jpg\t0\n1\ta/a_0002.jpg\t0\n",
        "pairs.txt": b"1\t1\na\t1\t2\na\t1\ta\t2\n",
        "landmarks.csv": (
            b"file,left_eye_x,left_eye_y,right_eye_x,right_eye_y,nose_x,nose_y,mouth_left_x,"
            b"mouth_left_y,mouth_right_x,mouth_right_y\na.jpg,1,2,3,4,5,6,7,8,9,10\n"
        ),
    }
    (tmp_path / "a").mkdir(exist_ok=True)
    for number in (1, 2):
        (tmp_path / f"a/a_000{number}.jpg").write_bytes(IMAGES[0])
    for name, read in (
        ("train.lst", read_list),
        ("pairs.txt", read_pairs),
        ("landmarks.csv", read_landmarks),
    ):
        path = tmp_path / name
        path.write_bytes(data.draw(damage(contents[name])))
        for on_error in ("raise", "skip"):
            try:
                read(path, on_error=on_error)
            except DataError as error:
                named(error, tmp_path)


def test_long_chains_take_linear_time(tmp_path):
    # Every index entry and every scan start could walk the same chain of parts to its end.
    count = 20_000
    middle = MAGIC + struct.pack("<I", 2 << 29)
    path = tmp_path / "a.rec"
    path.write_bytes((MAGIC + struct.pack("<I", 1 << 29)) * count + middle * count)
    records = RecordFile(path, on_error="skip")
    assert len(records) == 0
    path.with_suffix(".idx").write_text("".join(f"{i}\t{8 * i}\n" for i in range(2 * count)))
    records = RecordFile(path)
    with pytest.raises(DataError, match=rf"{2 * count} problem"):
        records.headers()
