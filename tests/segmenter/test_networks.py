"""The networks against what the public implementations compute."""

import json

import numpy as np
import pytest
import torch

from segmenter.networks.bisenet import BiSeNet, zllrunning_key
from segmenter.networks.light import LightParser
from segmenter.networks.swiftformer import SwiftFormerUNet
from tests.golden import golden_tensor


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "size", "step"),
    [
        ("bisenet_yakhyo_resnet18", 256, 8),
        ("bisenet_yakhyo_resnet34", 256, 8),
        ("bisenet_zllrunning", 256, 8),
        ("swiftformer_l1_unet", 128, 4),
    ],
)
def test_keys_and_outputs_equal_the_public_network(data_dir, name, size, step):
    keys = json.loads((data_dir / "golden_nets" / f"{name}.keys.json").read_text())
    golden = np.load(data_dir / "golden_nets" / f"{name}.out.npz")
    if name == "swiftformer_l1_unet":
        network: torch.nn.Module = SwiftFormerUNet()
    else:
        network = BiSeNet(34 if "34" in name else 18, classifier="yakhyo" in name)
    renamed = zllrunning_key if "zllrunning" in name else str
    state = network.state_dict()
    assert [[renamed(k), list(v.shape)] for k, v in state.items()] == [list(k) for k in keys]

    network.load_state_dict(
        {k: golden_tensor(renamed(k), tuple(v.shape)) for k, v in state.items()}
    )
    x = np.random.RandomState(0).rand(2, 3, size, size).astype(np.float32) * 2 - 1
    with torch.inference_mode():
        outputs = network.eval()(torch.from_numpy(x))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(golden.files)
    for index, output in enumerate(outputs):
        expected = golden[f"out{index}"]
        ours = output[:, :, ::step, ::step].numpy()
        assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_light_parser_is_small_and_takes_even_sizes():
    network = LightParser().eval()
    assert 4 * sum(p.numel() for p in network.parameters()) < 4e6
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 62, 50)).shape == (1, 19, 62, 50)
