"""Networks against what the public implementations compute (`golden_nets/`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recognizer.backbones import build_backbone
from tests.golden import golden_tensor

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
