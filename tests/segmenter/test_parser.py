"""The parser interface: sizes, class orders, files from strangers, the cache."""

import pickle
import sqlite3

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from segmenter import CLASSES, Parser, load_parser
from segmenter.cache import parse_cached
from segmenter.features import ParserFeatures
from segmenter.labels import BISENET_TO_CELEBAMASK, mirror_table
from segmenter.networks.bisenet import BiSeNet, zllrunning_key
from segmenter.networks.light import LightParser
from segmenter.networks.swiftformer import SwiftFormerUNet
from segmenter.training import save_parser


@pytest.fixture(scope="module")
def light_path(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "some.safetensors"
    save_parser(LightParser(), path, 64)
    return path


def images(n: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    )


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 150, 150), (2, 37, 81), (1, 1, 1), (0, 9, 9)])
def test_labels_have_the_size_of_the_images(light_path, shape):
    labels = load_parser(light_path).parse(images(*shape))
    assert labels.shape == shape
    assert labels.dtype == torch.uint8
    assert (labels < len(CLASSES)).all()


def test_a_huge_image_is_parsed_within_bounds(light_path):
    assert load_parser(light_path).parse(images(1, 2500, 1300)).shape == (1, 2500, 1300)


def test_other_tensors_are_refused_with_advice(light_path):
    parser = load_parser(light_path)
    for bad in (images(1, 8, 8)[:, :1], images(1, 8, 8).float(), images(1, 8, 8)[0]):
        with pytest.raises(ValueError, match="uint8 BGR"):
            parser.parse(bad)


def test_version_follows_the_weights(light_path, tmp_path):
    network = LightParser()
    network.load_state_dict(load_file(light_path))
    save_parser(network, tmp_path / "same.safetensors", 64)
    with torch.no_grad():
        network.merge2.coarse.weight.add_(1)
    save_parser(network, tmp_path / "other.safetensors", 64)
    version = load_parser(light_path).version
    assert load_parser(tmp_path / "same.safetensors").version == version
    assert load_parser(tmp_path / "other.safetensors").version != version


def test_published_class_orders():
    # The two orders as the facts about the formats list them.
    ours = "background skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip "
    ours += "hair hat ear_r neck_l neck cloth"
    theirs = "background skin l_brow r_brow l_eye r_eye eye_g l_ear r_ear ear_r nose mouth u_lip "
    theirs += "l_lip neck neck_l cloth hair hat"
    assert " ".join(CLASSES) == ours
    assert [CLASSES[i] for i in BISENET_TO_CELEBAMASK.tolist()] == theirs.split()
    swapped = {n: CLASSES[i] for n, i in zip(CLASSES, mirror_table().tolist(), strict=True)}
    assert swapped["l_eye"] == "r_eye"
    assert swapped["r_ear"] == "l_ear"
    assert swapped["l_lip"] == "l_lip"
    assert swapped["u_lip"] == "u_lip"


@pytest.mark.parametrize("naming", ["yakhyo", "zllrunning"])
def test_bisenet_is_recognised_and_its_classes_are_remapped(tmp_path, naming):
    network = BiSeNet(18, classifier=naming == "yakhyo")
    with torch.no_grad():  # whatever it sees, it answers class 17 of its own order: hair
        network.conv_out.conv_block.norm.bias.fill_(1)
        network.conv_out.conv_block.norm.weight.zero_()
        network.conv_out.conv.weight.zero_()
        network.conv_out.conv.weight[17] = 1
    renamed = zllrunning_key if naming == "zllrunning" else str
    state = {f"module.{renamed(k)}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "79999_iter.pth")
    parser = load_parser(tmp_path / "79999_iter.pth")
    assert parser.size == 512
    assert (parser.parse(images(1, 32, 32)) == CLASSES.index("hair")).all()


def test_swiftformer_is_recognised(tmp_path):
    save_file(SwiftFormerUNet().state_dict(), tmp_path / "swift.safetensors")
    assert load_parser(tmp_path / "swift.safetensors").parse(images(1, 40, 40)).shape == (1, 40, 40)


class _Payload:
    def __reduce__(self):
        return (open, ("/tmp/sarface-should-not-exist", "w"))


def test_strangers_files_are_refused(tmp_path, light_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": _Payload()}))
    (tmp_path / "cut.safetensors").write_bytes(light_path.read_bytes()[:1000])
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04" + b"0" * 50)
    torch.save({"a": torch.zeros(1)}, tmp_path / "unknown.pt")
    save_file({"stage16.0.0.weight": torch.zeros(1)}, tmp_path / "partial.safetensors")
    for name in ("evil.pth", "cut.safetensors", "cut.pth", "unknown.pt", "partial.safetensors"):
        with pytest.raises(ValueError, match=name):
            load_parser(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_parser("nowhere")


class CountingParser(Parser):
    """Stands for a parser; its labels are a function of the pixels."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.name, self.version = "counting", "1"
        self.seen, self.fail_after = 0, fail_after

    def parse(self, images: torch.Tensor, batch: int = 32) -> torch.Tensor:
        self.seen += len(images)
        if self.seen > self.fail_after:
            raise KeyboardInterrupt
        return images[:, 0] % 19


def test_cache_parses_each_image_once_and_survives_a_kill(tmp_path):
    faces = images(600, 10, 12)
    path = tmp_path / "deep" / "labels.sqlite"
    with pytest.raises(KeyboardInterrupt):
        parse_cached(CountingParser(fail_after=300), faces, path, progress=False)
    parser = CountingParser()
    labels = parse_cached(parser, faces, path, progress=False)
    assert parser.seen == 600 - 256  # what the first run had committed is kept
    assert torch.equal(labels, faces[:, 0] % 19)
    again = CountingParser()
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert torch.equal(parse_cached(again, faces[order], path, progress=False), labels[order])
    assert again.seen == 0
    again.version = "2"
    parse_cached(again, torch.cat([faces[:5], faces[:5]]), path, progress=False)
    assert again.seen == 5


def test_damaged_cache_entries_are_parsed_again(tmp_path):
    faces, path = images(4, 10, 12), tmp_path / "labels.sqlite"
    labels = parse_cached(CountingParser(), faces, path, progress=False)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE labels SET map = x'00'")
    parser = CountingParser()
    assert torch.equal(parse_cached(parser, faces, path, progress=False), labels)
    assert parser.seen == 4
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(ValueError, match="not usable as a cache"):
        parse_cached(parser, faces, path, progress=False)


def test_features_are_what_the_classes_are_made_of(tmp_path):
    parser, trunk = load_parser("light", "cpu"), ParserFeatures("light").train()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((2, 3, 6, 6), generator=generator) * 255
    pictures = F.interpolate(coarse, (parser.size, parser.size), mode="bilinear").to(torch.uint8)
    maps = parser.network.features(pictures.float() / 127.5 - 1)
    assert torch.equal(parser.network.head(maps[-1]).argmax(1).byte(), parser.parse(pictures))
    # Means over blocks, the encoder's maps first.
    seen, side = trunk(pictures), parser.size // 16
    assert seen.shape == (2, trunk.channels, side, side)
    blocks = [m.unflatten(3, (side, -1)).unflatten(2, (side, -1)).mean((3, 5)) for m in maps]
    torch.testing.assert_close(seen, torch.cat(blocks, 1), atol=1e-4, rtol=1e-4)
    # In whatever mode: the weights and statistics stay.
    assert not any(module.training for module in trunk.modules())
    assert trunk(pictures[:, :, :50, :60]).shape == seen.shape
    save_file(SwiftFormerUNet().state_dict(), tmp_path / "swift.safetensors")
    with pytest.raises(ValueError, match="is no light parser"):
        ParserFeatures(str(tmp_path / "swift.safetensors"))
