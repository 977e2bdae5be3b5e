"""`pairs.txt`, `.bin` (also as Python 2 and numpy wrote it) and pickles that carry code."""

import os
import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognizer.data.problems import DataError
from recognizer.data.verification_sets import (
    PairSet,
    read_bin,
    read_pair_set,
    read_pairs,
    write_bin,
)


def jpeg(value: int, size: int = 8) -> bytes:
    return cv2.imencode(".jpg", np.full((size, size, 3), value, np.uint8))[1].tobytes()


IMAGES = [jpeg(i * 30) for i in range(4)]


@pytest.mark.data
def test_bin_and_folder_hold_the_same_pairs(data_dir):
    from_bin = read_pair_set(data_dir / "faces_lfw_112x112/lfw.bin")
    folder = read_pair_set(data_dir / "lfw_dev")
    assert (len(folder), folder.folds, len(folder.images)) == (4200, 7, 5367)
    assert folder.people[folder.pairs[0, 0]] == folder.people[folder.pairs[0, 1]] == "Abel_Pacheco"
    two = folder.only_folds([0, 1])
    assert (len(from_bin), from_bin.folds) == (1200, 2)
    assert np.array_equal(two.issame, from_bin.issame)
    assert np.array_equal(two.fold, from_bin.fold)
    # Both number their images as they appear in the pairs.
    assert np.array_equal(two.pairs, from_bin.pairs)
    assert from_bin.decode([0, 1]).shape == (2, 3, 112, 112)
    linked = from_bin.linked_people()
    for a, b in from_bin.pairs[from_bin.issame]:
        assert linked[a] == linked[b]
    # Linked images are truly one person: the folder names them.
    named = np.array(two.people)
    assert all(len(set(named[linked == number])) == 1 for number in range(linked.max() + 1))


def python2_string(data: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(data)) + data


def python2_array(data: bytes) -> bytes:
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("
        b"K\x01J" + struct.pack("<i", len(data)) + b"\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2_string(data)
        + b"tb"
    )


@pytest.mark.parametrize("entry", [python2_string, python2_array])
def test_python2_bin(tmp_path, entry):
    body = b"](" + b"".join(map(entry, IMAGES)) + b"e](\x88\x89e\x86."
    (tmp_path / "a.bin").write_bytes(b"\x80\x02" + body)
    pairs = read_bin(tmp_path / "a.bin")
    assert [pairs.encoded(i) for i in pairs.pairs.ravel()] == IMAGES
    assert pairs.issame.tolist() == [True, False]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_python3_bin(tmp_path, protocol, arrays, module):
    images = [np.frombuffer(data, np.uint8) for data in IMAGES] if arrays else IMAGES
    data = pickle.dumps((images, [True, False]), protocol)
    if protocol < 4:
        data = data.replace(b"numpy._core", module).replace(b"numpy.core", module)
    (tmp_path / "a.bin").write_bytes(data)
    pairs = read_bin(tmp_path / "a.bin")
    assert [pairs.encoded(i) for i in pairs.pairs.ravel()] == IMAGES
    assert pairs.issame.tolist() == [True, False]


def test_write_bin_repeats_shared_images(tmp_path):
    pairs = PairSet(
        "x", IMAGES[:3], np.array([[0, 1], [0, 2]]), np.array([True, False]), np.array([0, 0])
    )
    write_bin(tmp_path / "a.bin", pairs)
    images, issame = pickle.loads((tmp_path / "a.bin").read_bytes())
    assert images == [IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[2]]
    assert issame == [True, False]
    with pytest.raises(FileExistsError):
        write_bin(tmp_path / "a.bin", pairs)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["image", "issame", "instead"])
def test_code_in_a_bin_does_not_run(tmp_path, protocol, where):
    marker = tmp_path / "marker"
    for code in (Calls(os.mkdir, str(marker)), Calls(eval, f"open({str(marker)!r}, 'w')")):
        value = {"image": ([code, *IMAGES[1:]], [True, False]), "issame": (IMAGES, [code, True])}
        data = pickle.dumps(value.get(where, code), protocol)
        (tmp_path / "a.bin").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.bin, offset \d+: it refers to .*not allowed"):
            read_bin(tmp_path / "a.bin")
        assert not marker.exists()
        # The code is live: an ordinary unpickler runs it.
        pickle.loads(data)
        assert marker.exists()
        marker.rmdir() if marker.is_dir() else marker.unlink()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((IMAGES, [True]), "4 images for 1 pairs"),
        (([], []), "at least one pair"),
        ((IMAGES, [True, 2]), "issame is 2"),
        (([*IMAGES[:3], b"gif"], [True, False]), "image 3 .pair 1.: neither a JPEG nor a PNG"),
        (([*IMAGES[:3], IMAGES[3][:-9]], [True, False]), "image 3 .pair 1.: .* cut off"),
        (([*IMAGES[:3], 1.5], [True, False]), "BINFLOAT is not allowed"),
        (([*IMAGES[:3], [b"x"]], [True, False]), "entry 3 .* list, which is not allowed"),
        (([*IMAGES[:3], np.zeros(3)], [True, False]), "dtype 'f8'"),
        (([*IMAGES[:3], np.zeros((2, 2), np.uint8)], [True, False]), "not 1-D uint8"),
        ({"a": 1}, "EMPTY_DICT is not allowed"),
        (7, "expected the two lists"),
    ],
)
def test_bad_bin(tmp_path, value, message):
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(value, 2))
    with pytest.raises(DataError, match=message) as error:
        read_bin(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # memo index 2**31 - 1: tens of gigabytes
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fx.",  # bytes of length 2**63 - 1
        b"\x80\x02c_codecs\nencode\nX\x00\x10\x00\x00"
        + b"x" * 4096
        + b"q\x00X\x06\x00\x00\x00latin1q"
        b"\x01\x86R(" + b"c_codecs\nencode\nh\x00h\x01\x86R" * 9000 + b"l.",
        b"(" * 100000,
        b"]" * 100000 + b"a" * 99999 + b".",
        b"",
    ],
)
def test_hostile_pickles_end_early(tmp_path, data):
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.bin"):
        read_bin(tmp_path / "a.bin")


def test_folds_of_a_bin(tmp_path):
    def folds(issame, **keywords):
        data = (IMAGES[:2] * len(issame), issame)
        (tmp_path / "a.bin").write_bytes(pickle.dumps(data, 2))
        return read_bin(tmp_path / "a.bin", **keywords).fold.tolist()

    assert folds(([True] * 2 + [False] * 2) * 3) == [0] * 4 + [1] * 4 + [2] * 4
    assert folds([True, True, False] * 4) == [0, 0, 1, 1, *range(2, 10)]
    assert folds([True] * 4, folds=2) == [0, 0, 1, 1]


def make_folder(root: Path) -> Path:
    for person, count in (("A", 2), ("B b", 2), ("C", 1)):
        (root / "images" / person).mkdir(parents=True)
        for number in range(1, count + 1):
            (root / "images" / person / f"{person}_{number:04d}.jpg").write_bytes(
                jpeg(number * 40 + ord(person[0]))
            )
    (root / "pairs.txt").write_text("2\t1\nA\t1\t2\nA\t1\tC\t1\nB b\t1\t2\nB b\t2\tA\t2\n")
    return root


def test_pairs_txt(tmp_path):
    pairs = read_pair_set(make_folder(tmp_path))
    names = [path.stem for path in pairs.images]
    assert [[names[i] for i in pair] for pair in pairs.pairs] == [
        ["A_0001", "A_0002"],
        ["A_0001", "C_0001"],
        ["B b_0001", "B b_0002"],
        ["B b_0002", "A_0002"],
    ]
    assert pairs.issame.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    second = pairs.only_folds([1])
    assert [path.stem for path in second.images] == [names[i] for i in sorted({1, 3, 4})]
    assert second.fold.tolist() == [0, 0]


def test_all_problems_of_pairs_txt_in_one_error(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "images/C/C_0001.jpg").write_bytes(b"text")
    lines = ["3\t1", "A\t1\t9", "A\t1\tC\t1", "B b\t1\t2", "..\t2\tA\t2", "A\t1\tx", "A\t1\tB b\t1"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        read_pairs(tmp_path / "pairs.txt")
    text = str(error.value)
    assert "4 problem(s)" in text
    for part in ("line 2: no image", "C_0001.jpg: neither", "line 5: no image", "line 6: expected"):
        assert part in text
    kept = read_pairs(tmp_path / "pairs.txt", on_error="skip")
    assert kept.fold.tolist() == [1, 2]
    assert len(kept.problems) == 4


@pytest.mark.parametrize("first", ["", "x\ty", "999999999\t999999999", "0\t3", "1\t2\t3"])
def test_bad_first_line_of_pairs_txt(tmp_path, first):
    (tmp_path / "pairs.txt").write_text(f"{first}\nA\t1\t2\n")
    with pytest.raises(DataError, match=r"pairs\.txt"):
        read_pairs(tmp_path / "pairs.txt")
