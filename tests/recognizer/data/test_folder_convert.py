"""Image folders, lists, landmarks and the converters' round trips."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognizer.data import convert
from recognizer.data.face_records import FaceRecords
from recognizer.data.folder import LANDMARK_COLUMNS, read_folder, read_landmarks, read_list
from recognizer.data.images import decode_image, decode_images, image_size
from recognizer.data.problems import DataError
from recognizer.data.verification_sets import read_bin, read_pair_set


def encoded(value: int, suffix: str = ".jpg", size: int = 8) -> bytes:
    return cv2.imencode(suffix, np.full((size, size, 3), value, np.uint8))[1].tobytes()


def make_folder(root: Path, people: dict[str, int]) -> Path:
    value = 0
    for person, count in people.items():
        (root / person).mkdir(parents=True)
        for number in range(1, count + 1):
            suffix = (".jpg", ".png")[value % 2]
            (root / person / f"{person}_{number:04d}{suffix}").write_bytes(encoded(value, suffix))
            value += 7
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("dialect", ["insightface", "im2rec"])
@pytest.mark.parametrize("aligned", [False, True])
def test_folder_to_records_and_back(tmp_path, dialect, aligned):
    source = make_folder(tmp_path / "in", {"B": 2, "A": 3, "C": 1})
    out = tmp_path / "rec"
    assert convert.folder_to_records(source, out, dialect, aligned_labels=aligned) == 6
    faces = FaceRecords(out)
    assert faces.dialect == dialect
    assert faces.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert faces.records.unpack(int(faces.keys[0]))[0].flag == (2 if aligned else 0)
    assert convert.records_to_folder(out, tmp_path / "out") == 6
    assert tree(tmp_path / "out") == tree(source)
    # Without the list the files are called by class and key.
    (out / "train.lst").unlink()
    convert.records_to_folder(out, tmp_path / "plain")
    assert sorted(tree(tmp_path / "plain").values()) == sorted(tree(source).values())
    for target in (tmp_path / "out", tmp_path / "plain"):
        with pytest.raises(FileExistsError):
            convert.records_to_folder(out, target)
    with pytest.raises(FileExistsError):
        convert.folder_to_records(source, out, dialect)


@pytest.mark.data
def test_real_sets_round_trip(data_dir, tmp_path):
    source = data_dir / "faces_lfw_112x112"
    convert.records_to_folder(source, tmp_path / "faces")
    convert.folder_to_records(tmp_path / "faces", tmp_path / "rec")
    old, new = FaceRecords(source), FaceRecords(tmp_path / "rec")
    assert [old.encoded(i) for i in range(len(old))] == [new.encoded(i) for i in range(len(new))]
    assert np.array_equal(old.identity_ranges, new.identity_ranges)
    for name in ("property", "train.lst"):
        assert (source / name).read_bytes() == (tmp_path / "rec" / name).read_bytes()

    convert.bin_to_folder(source / "lfw.bin", tmp_path / "pairs")
    convert.folder_to_bin(tmp_path / "pairs", tmp_path / "lfw.bin")
    old_pairs, new_pairs = read_bin(source / "lfw.bin"), read_bin(tmp_path / "lfw.bin")
    assert list(old_pairs.images) == list(new_pairs.images)
    for name in ("pairs", "issame", "fold"):
        assert np.array_equal(getattr(old_pairs, name), getattr(new_pairs, name))
    assert read_pair_set(tmp_path / "pairs").folds == 2


def test_command_line(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "recognizer.data.convert", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    source = make_folder(tmp_path / "in", {"A": 2, "B": 1})
    (source / "A/A_0003.jpg").write_bytes(b"")
    result = run("check", source, "--min_images", "2")
    assert result.returncode == 1
    assert "A_0003.jpg: the image is empty" in result.stdout
    assert "B has 1 image(s), 2 are needed" in result.stdout
    assert "Traceback" not in result.stderr
    assert "2 problem(s)" in result.stderr


def test_all_problems_of_a_folder_in_one_error(tmp_path):
    source = make_folder(tmp_path / "in", {"A": 3, "B": 1, "C": 2})
    (source / "A/A_0001.jpg").write_bytes(b"no image")
    (source / "C/C_0001.jpg").write_bytes(encoded(1, size=9))
    (source / "C/C_0002.png").write_bytes(encoded(1, ".png")[:-20])
    with pytest.raises(DataError) as error:
        read_folder(source, min_images=2, check_images=True)
    text = str(error.value)
    for part in (
        "A_0001.jpg: neither",
        "C_0001.jpg: 9x9",
        "C_0002.png: .* cut off",
        "B has 1 image",
    ):
        assert part.split(".*")[0] in text
    kept = read_folder(source, min_images=2, check_images=True, on_error="skip")
    assert kept.names == ["A"]
    assert [path.name for path in kept.paths] == ["A_0002.png", "A_0003.jpg"]
    assert len(kept.problems) == 4
    with pytest.raises(DataError, match="no images"):
        read_folder(source / "A")


def test_list(tmp_path):
    root = make_folder(tmp_path, {"A": 2, "B": 1})
    path = tmp_path / "train.lst"
    path.write_text("1\tB/B_0001.jpg\t7\t0\t0\t9\t9\n1\tA/A_0001.jpg\t3\n1\tA/A_0002.png\t3\n")
    faces = read_list(path)
    assert faces.names == ["A", "B"]
    assert [p.name for p in faces.paths] == ["A_0001.jpg", "A_0002.png", "B_0001.jpg"]
    assert faces.labels.tolist() == [0, 0, 1]
    path.write_text("0\t3.0\tA/A_0001.jpg\n1\t0\t../x.jpg\n2\tx\n3\t1\tA/A_0009.jpg\n")
    with pytest.raises(DataError, match="3 problem"):
        read_list(path)
    assert len(read_list(path, root, on_error="skip")) == 1


def test_landmarks(tmp_path):
    path = tmp_path / "landmarks.csv"
    head, row = ",".join(LANDMARK_COLUMNS), ",".join(map(str, range(10)))
    path.write_text(f"{head}\na.jpg,{row}\n")
    assert read_landmarks(path)["a.jpg"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    path.write_text(f"{head}\na.jpg,{row}\na.jpg,{row}\nb.jpg,1,2\nc.jpg,{row[:-1]}nan\n")
    with pytest.raises(DataError, match="3 problem"):
        read_landmarks(path)
    assert list(read_landmarks(path, on_error="skip")) == ["a.jpg"]
    path.write_text("file,x\n")
    with pytest.raises(DataError, match="expected the header"):
        read_landmarks(path)


def test_image_sizes_and_colours(tmp_path):
    image = np.zeros((10, 14, 3), np.uint8)
    image[..., 0] = 255  # blue, in BGR
    for suffix in (".jpg", ".png"):
        for flags in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1]):
            data = cv2.imencode(suffix, image, flags if suffix == ".jpg" else [])[1].tobytes()
            assert image_size(data) == (10, 14)
            assert abs(decode_image(data).astype(int) - image).max() < 3
            assert image_size(data + bytes(8)) == (10, 14)
            for cut in range(len(data) - 1):
                with pytest.raises(DataError):
                    image_size(data[:cut])


def test_image_that_announces_too_much():
    data = bytearray(encoded(0, ".png"))
    data[16:24] = b"\0\0\x40\0\0\0\x40\0"  # 16384 x 16384: OpenCV would reserve 800 MB
    with pytest.raises(DataError, match="cannot hold the 16384x16384 pixels"):
        decode_image(bytes(data))


def test_decode_images_lists_what_is_wrong():
    data = [encoded(10), b"", encoded(30, size=6), encoded(20)]
    names = ["a", "b", "c", "d"]
    with pytest.raises(DataError, match="2 problem") as error:
        decode_images(data.__getitem__, names)
    assert "b: the image is empty" in str(error.value)
    assert "c: 6x6 pixels, but a has 8x8" in str(error.value)
    images, kept, found = decode_images(data.__getitem__, names, size=8, on_error="skip")
    assert kept.tolist() == [0, 2, 3]
    assert images.float().mean((1, 2, 3)).tolist() == pytest.approx([10, 30, 20], abs=1)
    assert len(found) == 1
