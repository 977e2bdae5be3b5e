"""Networks against what the public implementations compute (`golden_nets/`)."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from recognizer.backbones import build_backbone

GOLDEN = {
    "ir_18": "adaface_ir_18",
    "ir_34": "adaface_ir_34",
    "ir_50": "adaface_ir_50",
    "ir_101": "adaface_ir_101",
    "ir_se_50": "adaface_ir_se_50",
    "iresnet18": "insightface_iresnet18",
    "iresnet34": "insightface_iresnet34",
    "iresnet50": "insightface_iresnet50",
    "iresnet100": "insightface_iresnet100",
    "mobilefacenet": "insightface_mobilefacenet",
}


@functools.cache
def golden_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value that the golden networks had under this key; a function of the name only."""
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_mean"):
        value = 0.1 * rng.randn(*shape)
    elif key.endswith("running_var"):
        value = 1 + 0.1 * rng.rand(*shape)
    elif len(shape) >= 2:
        value = rng.randn(*shape) * np.sqrt(0.5 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        value = 1 + 0.1 * rng.randn(*shape)
    else:
        value = 0.1 * rng.randn(*shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDEN)
def test_matches_the_public_implementation(name: str, data_dir: Path) -> None:
    golden = data_dir / "golden_nets" / GOLDEN[name]
    keys = json.loads(Path(f"{golden}.keys.json").read_text())
    with torch.device("meta"):  # no time spent on initial weights
        net = build_backbone(name).eval()
    assert [[key, list(value.shape)] for key, value in net.state_dict().items()] == keys

    net.load_state_dict({key: golden_tensor(key, tuple(shape)) for key, shape in keys}, assign=True)
    image = np.random.RandomState(0).rand(2, 3, 112, 112).astype(np.float32) * 2 - 1
    with torch.inference_mode():
        out = net(torch.from_numpy(image))
    out = out if isinstance(out, tuple) else (out,)
    with np.load(f"{golden}.out.npz") as expected:
        assert len(out) == len(expected.files)
        for index, value in enumerate(out):
            want = expected[f"out{index}"]
            error = np.abs(value.numpy() - want).max() / np.abs(want).max()
            assert error < 1e-4


def test_unknown_backbone_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet1000'.*ir_50.*mobilefacenet"):
        build_backbone("resnet1000")
