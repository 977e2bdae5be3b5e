"""Folders of the cache: made once, whole, whoever asks and whoever was killed."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recognizer.data.disk_cache import make_once, new_array


def test_a_folder_is_made_once_however_many_want_it(tmp_path):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "file").write_text("whole")

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_once(tmp_path / "cache" / "faces", make), range(8)))
    assert len(calls) == sum(made) == 1
    assert (tmp_path / "cache" / "faces" / "file").read_text() == "whole"


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".faces-killed"
    left.mkdir()
    (left / "half").write_text("half")
    assert make_once(tmp_path / "faces", lambda folder: (folder / "file").write_text("whole"))
    assert not left.exists()
    assert [path.name for path in (tmp_path / "faces").iterdir()] == ["file"]


def test_what_fails_leaves_no_folder(tmp_path):
    def make(folder):
        (folder / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make_once(tmp_path / "faces", make)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_array_takes_its_room_at_once(tmp_path):
    array = new_array(tmp_path / "a.npy", (3, 1000, 1000), np.uint8)
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes == 3_000_000
    array[1] = 7
    del array
    assert np.load(tmp_path / "a.npy").mean((1, 2)).tolist() == [0, 7, 0]


def test_a_full_disk_is_an_error_that_says_how_much_is_wanted(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device for 0\.3 GB: .*a\.npy"):
        new_array(tmp_path / "a.npy", (300, 1000, 1000), np.uint8)
