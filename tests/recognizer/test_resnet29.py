"""ResNet-29 against the embeddings that dlib itself computes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recognizer.backbones import resnet29
from recognizer.backbones.resnet29 import ResNet29, find_weights, read_weights


@pytest.fixture(scope="module")
def weights() -> Path:
    try:
        return find_weights()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.data
def test_reproduces_dlib(data_dir: Path, weights: Path) -> None:
    with np.load(data_dir / "golden_nets" / "resnet29_dlib.npz") as golden:
        names, want = [str(name) for name in golden["names"]], golden["raw"]
    folder = data_dir / "lfw_dev" / "images"
    images = np.stack([cv2.imread(str(folder / name[:-9] / name)) for name in names])
    x = (images[..., ::-1] - np.float32([122.782, 117.001, 104.298])) / np.float32(256)
    net = ResNet29().eval()
    net.load_state_dict(read_weights(weights))
    with torch.inference_mode():
        out = net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    assert np.abs(out - want).max() < 1e-5


def test_damaged_weights_are_refused(tmp_path: Path, weights: Path) -> None:
    whole = weights.read_bytes()
    path = tmp_path / "damaged.dat"
    for damaged in (b"", b"\x01\x05con_4", whole[:1000], whole[:-50_000], whole[9_000_000:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.dat: not dlib's ResNet-29: .*byte \d+"):
            read_weights(path)


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet29, "PACKAGE", "no_such_package_here")
    with pytest.raises(FileNotFoundError, match="pip install no_such_package_here"):
        find_weights()
