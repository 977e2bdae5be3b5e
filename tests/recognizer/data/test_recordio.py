"""RecordIO against files that MXNet wrote, and against bytes laid out by hand."""

import hashlib
import pickle
import shutil
import struct

import numpy as np
import pytest
from torch.utils.data import DataLoader

from recognizer.data.face_records import Face, FaceRecords, write_face_records
from recognizer.data.problems import DataError
from recognizer.data.recordio import IRHeader, RecordFile, pack, unpack
from recognizer.data.recordio_writer import RecordWriter

MAGIC = struct.pack("<I", 0xCED7230A)


def part(flag: int, data: bytes) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(data)) + data + bytes(-len(data) % 4)


def image(number: int) -> bytes:
    """Stands for an encoded image where nothing decodes it."""
    return b"image %d" % number * (1 + number % 3)


@pytest.fixture
def small(tmp_path):
    """Six images of three people."""
    faces = [Face(image(i), i // 2, f"p{i // 2}/{i}.jpg") for i in range(6)]
    write_face_records(tmp_path / "train.rec", faces)
    return tmp_path / "train.rec"


def test_bytes_of_a_split_record(tmp_path):
    # The magic at 4 is cut out, the one at 9 is not at a multiple of 4, the two at 16 both are.
    record = b"abcd" + MAGIC + b"x" + MAGIC + b"yyy" + MAGIC + MAGIC + b"z"
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(7, b"first")
        writer.write(3, record)
    expected = part(0, b"first") + part(1, b"abcd") + part(2, b"x" + MAGIC + b"yyy")
    expected += part(2, b"") + part(3, b"z")
    assert (tmp_path / "a.rec").read_bytes() == expected
    assert (tmp_path / "a.idx").read_text() == "7\t0\n3\t16\n"
    records = RecordFile(tmp_path / "a.rec")
    assert list(records) == [(3, record), (7, b"first")]


def test_header_layout():
    assert pack(IRHeader(9, 2.5, 3, 4), b"xy") == struct.pack("<IfQQ", 0, 2.5, 3, 4) + b"xy"
    several = pack(IRHeader(0, [5, 1], 3, 4), b"xy")
    assert several == struct.pack("<IfQQff", 2, 0, 3, 4, 5, 1) + b"xy"
    header, data = unpack(several)
    assert header[0] == 2
    assert header.label.tolist() == [5, 1]
    assert (header.id, header.id2, data) == (3, 4, b"xy")


@pytest.mark.data
def test_magic_golden(data_dir):
    records = RecordFile(data_dir / "recordio_golden/magic.rec")
    expected = (data_dir / "recordio_golden/magic.expected.hex").read_text().split("\n")
    assert [data.hex() for _, data in records] == expected[: len(records)]
    assert len(records) == 8


@pytest.mark.data
@pytest.mark.parametrize("index", [True, False])
def test_im2rec_golden(data_dir, tmp_path, index):
    folder = data_dir / "recordio_golden"
    for suffix in (".rec", ".idx")[: 1 + index]:
        shutil.copy(folder / f"im2rec{suffix}", tmp_path)
    faces = FaceRecords(tmp_path / "im2rec.rec")
    lines = (folder / "im2rec.expected.tsv").read_text().split()
    table = np.array(lines).reshape(-1, 3)
    assert faces.dialect == "im2rec"
    assert faces.keys.tolist() == table[:, 0].astype(int).tolist()
    assert faces.labels.tolist() == table[:, 1].astype(int).tolist()
    digests = [hashlib.sha256(faces.encoded(i)[0]).hexdigest() for i in range(len(faces))]
    assert digests == table[:, 2].tolist()


@pytest.mark.data
@pytest.mark.parametrize("index", [True, False])
def test_insightface_golden(data_dir, tmp_path, index):
    folder = data_dir / "faces_lfw_112x112"
    path = folder / "train.rec"
    if not index:
        path = tmp_path / "train.rec"
        shutil.copy(folder / "train.rec", path)
    faces = FaceRecords(path)
    listed = [line.split("\t") for line in (folder / "train.lst").read_text().splitlines()]
    assert faces.dialect == "insightface"
    assert faces.labels.tolist() == [int(label) for _, _, label in listed]
    assert faces.num_classes == 767
    flags = {faces.records.unpack(key)[0].flag for key in faces.keys.tolist()}
    assert flags == {0, 2}
    for label, (first, end) in enumerate(faces.identity_ranges.tolist()):
        assert set(faces.labels[first - 1 : end - 1].tolist()) == {label}
    images, labels = faces.decode([0, 5, 2446])
    assert images.shape == (3, 3, 112, 112)
    assert labels.tolist() == [0, faces.labels[5], 766]


@pytest.mark.data
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_shared_between_workers(data_dir, method):
    faces = FaceRecords(data_dir / "faces_lfw_112x112")
    faces.encoded(0)
    loader = DataLoader(
        faces, batch_size=16, num_workers=2, sampler=range(64), multiprocessing_context=method
    )
    batches = list(loader)
    expected, labels = faces.decode(range(64))
    assert all((batches[i][0] == expected[16 * i : 16 * i + 16]).all() for i in range(4))
    assert [int(label) for _, batch in batches for label in batch] == labels.tolist()


def test_pickle_carries_no_data(small):
    records = RecordFile(small)
    blob = pickle.dumps(records)
    assert b"image" not in blob
    assert list(pickle.loads(blob)) == list(records)
    small.write_bytes(small.read_bytes() + bytes(4))
    with pytest.raises(DataError, match="when first opened"):
        pickle.loads(blob)


def test_label_in_a_split_record(tmp_path):
    # The magic is the low half of the id: the header itself is cut.
    key = 0xCED7230A
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(1, pack(IRHeader(0, 4.0, key - 1, 0), b"a"))
        writer.write(2, pack(IRHeader(0, [6, 1], key, 0), b"bcd"))
    records = RecordFile(tmp_path / "a.rec")
    headers = records.headers()
    assert headers.label.tolist() == [4, 6]
    assert headers.id.tolist() == [key - 1, key]
    assert headers.payload.tolist() == [1, 3]
    assert records.unpack(2)[1] == b"bcd"


def test_counts_beyond_float32(tmp_path):
    # 2**24 + 3 images cannot be said in float32 (it becomes + 4); here most are left out.
    last = (1 << 24) + 3
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, label in ((last - 2, 8), (last - 1, 8), (last, 9)):
            writer.write(key, pack(IRHeader(0, float(label), key, 0), b"x"))
        for key, span in ((last + 1, [last - 2, last]), (last + 2, [last, last + 1])):
            writer.write(key, pack(IRHeader(0, span, key, 0), b""))
        writer.write(0, pack(IRHeader(0, [last + 1, last + 3], 0, 0), b""))
    faces = FaceRecords(tmp_path / "train.rec", on_error="skip")
    assert faces.keys.tolist() == [last - 2, last - 1, last]
    assert faces.labels.tolist() == [8, 8, 9]
    assert faces.identity_ranges.tolist() == [[last - 2, last], [last, last + 1]]


def test_writer_is_atomic_and_does_not_overwrite(small, tmp_path):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["property", "train.idx", "train.lst", "train.rec"]
    with pytest.raises(FileExistsError, match=r"train\.lst"):
        write_face_records(small, [])

    def broken():
        yield Face(image(0), 0)
        raise RuntimeError("the source ended")

    with pytest.raises(RuntimeError):
        write_face_records(small, broken(), overwrite=True)
    with pytest.raises(ValueError, match="class 0 comes twice"):
        write_face_records(small, [Face(b"x", i) for i in (0, 1, 0)], overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bad_records_in_one_error_or_skipped(small):
    records = RecordFile(small)
    raw = bytearray(small.read_bytes())
    raw[records.offset(2)] ^= 1  # the magic
    raw[records.offset(4) + 12 : records.offset(4) + 16] = struct.pack("<f", np.nan)
    small.write_bytes(raw)
    faces = FaceRecords(small)
    with pytest.raises(DataError) as error:
        _ = faces.labels
    for key in (2, 4):
        assert f"{small}, record {key}, offset {records.offset(key)}" in str(error.value)
    with pytest.raises(
        DataError, match=f"record 2, offset {records.offset(2)}: expected the magic"
    ):
        faces.encoded(1)
    skipping = FaceRecords(small, on_error="skip")
    assert skipping.keys.tolist() == [1, 3, 5, 6]
    assert skipping.labels.tolist() == [0, 1, 2, 2]
    assert len(skipping.problems) == 2


def test_mismatched_classes_and_missing_images(small):
    lines = small.with_suffix(".idx").read_text().splitlines()
    small.with_suffix(".idx").write_text("\n".join(lines[:2] + lines[3:]) + "\n")
    with pytest.raises(DataError, match=r"images 1 to 6 announced, but 1 .* \(record 3, for one\)"):
        FaceRecords(small)
    small.with_suffix(".idx").write_text("\n".join(lines) + "\n")
    small.with_name("property").write_text("5,112,112\nmore\n")
    with pytest.raises(DataError, match=r"5 classes, but the labels .* hold 3 and go up to 2"):
        _ = FaceRecords(small).labels


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("0\t0\nx\t3\n", "not an index"),
        ("0\n1\n", "expected 2 columns"),
        ("0\t0\n1\t0\n", "the offset 0 is there twice"),
        ("0\t0\n0\t40\n", "the key 0 is there twice"),
        ("0\t3\n", "cannot be at offset 3"),
        ("0\t9999999\n", "cannot be at offset 9999999"),
        ("0\t99999999999999999999999\n", "not an index"),
    ],
)
def test_bad_index(small, index, message):
    small.with_suffix(".idx").write_text(index)
    with pytest.raises(DataError, match=message) as error:
        RecordFile(small)
    assert "train.idx" in str(error.value)
