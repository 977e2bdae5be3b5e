"""RecordIO against real MXNet 1.9.1, both directions; `tests/interop/run.sh` provides it."""

import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from cases import COUNT, cases

from recognizer.data.face_records import Face, FaceRecords, write_face_records
from recognizer.data.recordio import IRHeader, RecordFile, pack
from recognizer.data.recordio_writer import RecordWriter

HERE = Path(__file__).parent
MXNET = os.environ.get("SARFACE_MXNET")
pytestmark = pytest.mark.skipif(
    not MXNET, reason="no MXNet environment; run `make interop`, which creates one"
)


def mxnet(*arguments) -> str:
    command = [str(MXNET), str(HERE / "mxnet_side.py"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_thousands_of_records_both_ways(tmp_path):
    with RecordWriter(tmp_path / "ours.rec") as writer:
        for key, labels, id2, payload in cases():
            writer.write(key, pack(IRHeader(0, labels, key, id2), payload))
    mxnet("write", tmp_path)
    for suffix in (".rec", ".idx"):
        ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"mxnet{suffix}"
        assert ours.read_bytes() == theirs.read_bytes()
    assert mxnet("read", tmp_path) == f"{COUNT} records read\n"

    everything, raw = list(cases()), (tmp_path / "ours.rec").read_bytes()
    for index in (tmp_path / "mxnet.idx", None):
        if index is None:
            (tmp_path / "mxnet.idx").unlink()
        records = RecordFile(tmp_path / "mxnet.rec", index)
        assert len(records) == COUNT
        split = 0
        for key, labels, id2, payload in everything:
            header, data = records.unpack(key)
            assert data == payload
            assert (header.id, header.id2) == (key, id2)
            assert header.flag == (0 if isinstance(labels, float) else len(labels))
            assert np.array_equal(np.float32(header.label), np.float32(labels))
            assert records.read(key) == pack(IRHeader(0, labels, key, id2), payload)
            split += raw[records.offset(key) + 7] >> 5 == 1
        assert split > 500
        headers = records.headers()
        expected = [np.ravel(labels)[0] for _, labels, _, _ in sorted(everything)]
        assert np.array_equal(headers.label, np.float32(expected))


@pytest.mark.parametrize("aligned", [False, True])
def test_face_set_read_as_insightface_does(tmp_path, aligned):
    rng = np.random.default_rng(0)
    faces = []
    for label in range(40):
        for _ in range(int(rng.integers(1, 60))):
            flat = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
            faces.append(Face(cv2.imencode(".png", flat)[1].tobytes(), label, f"p{label}/x.png"))
    path = tmp_path / "train.rec"
    count = write_face_records(path, faces, (16, 16), aligned_labels=aligned)
    assert count == len(faces) > 1000

    lines = [line.split("\t") for line in mxnet("faces", path).splitlines()]
    images = np.array([line for line in lines if line[0] != "identity"], np.int64)
    ranges = np.array([line[1:] for line in lines if line[0] == "identity"], np.int64)
    read = FaceRecords(path)
    pixels, labels = read.decode()
    assert np.array_equal(images[:, 0], read.keys)
    assert np.array_equal(images[:, 1], [face.label for face in faces])
    assert np.array_equal(images[:, 1], labels)
    assert np.array_equal(images[:, 2], [len(face.data) for face in faces])
    assert np.array_equal(ranges, read.identity_ranges)
    # MXNet decodes to RGB, the project to BGR: its last channel is our first.
    assert np.array_equal(images[:, 5], pixels[:, 0].long().sum((1, 2)))
