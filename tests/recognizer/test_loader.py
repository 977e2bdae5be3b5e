"""Loading recognizers of every published layout, and refusing what is not one."""

import contextlib
import os
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from recognizer.backbones import build_backbone
from recognizer.checkpoint import read_checkpoint, save_recognizer
from recognizer.heads import build_head
from recognizer.loader import load_recognizer
from recognizer.recognizer import InputSpec, Recognizer

IMAGES = torch.randint(
    0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def mobile() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("mobilefacenet").eval()


@pytest.fixture(scope="module")
def ir18() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("ir_18").eval()


@torch.no_grad()
def test_adaface_checkpoint(tmp_path: Path, ir18: nn.Module, monkeypatch) -> None:
    # As Lightning 1.4 wrote them: callbacks keyed by class, in front of the weights.
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kernel = torch.randn(512, 7)
    state = {f"model.{key}": value for key, value in ir18.state_dict().items()}
    state |= {"head.kernel": kernel, "head.t": torch.zeros(1)}
    state |= {"head.batch_mean": torch.tensor([21.5]), "head.batch_std": torch.tensor([4.0])}
    path = tmp_path / "adaface.ckpt"
    torch.save(
        {
            "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.9)}},
            "state_dict": state,
            "hyper_parameters": {"head": "adaface", "m": 0.3, "h": 0.333, "lr": 0.1},
        },
        path,
    )
    monkeypatch.delitem(sys.modules, module.__name__)

    recognizer = load_recognizer(path, device="cpu")
    assert recognizer.name == "ir_18"
    assert not recognizer.training
    assert recognizer.info["input"] == "112x112 BGR, (x - 127.5) / 127.5"
    assert recognizer.info["head"] == "adaface, 7 classes"
    assert recognizer.head is not None
    torch.testing.assert_close(recognizer.head.weight.data, kernel.T)
    assert recognizer.head.hyperparameters() == pytest.approx(
        {"s": 64, "m": 0.3, "h": 0.333, "t_alpha": 0.01}
    )
    assert recognizer.head.state_dict()["norm_mean"] == 21.5
    embedding, norm = ir18((IMAGES / 255 - 0.5) / 0.5)
    torch.testing.assert_close(recognizer.embed(IMAGES), (embedding, norm), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict_backbone": s, "epoch": 3}])
def test_arcface_torch_weights(tmp_path: Path, mobile: nn.Module, wrap) -> None:
    path = tmp_path / "backbone.pth"
    torch.save(wrap(mobile.state_dict()), path)
    recognizer = load_recognizer(path, device="cpu")
    assert recognizer.name == "mobilefacenet"
    assert "RGB" in recognizer.info["input"]
    want = mobile((IMAGES.flip(1) / 255 - 0.5) / 0.5)
    torch.testing.assert_close(recognizer(IMAGES), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_own_file_gives_everything_back(tmp_path: Path, mobile: nn.Module) -> None:
    spec = InputSpec(112, False, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    head = build_head("arcface", 512, 5, m=0.25)
    saved = Recognizer(mobile, spec, head, "mobilefacenet", {"data": "faces"}).eval()
    path = tmp_path / "runs" / "mine.safetensors"
    save_recognizer(saved, path)
    loaded = load_recognizer(path, device="cpu")
    assert loaded.spec == spec
    assert loaded.info["data"] == "faces"
    assert loaded.head is not None
    assert (loaded.head.kind, loaded.head.m) == ("arcface", 0.25)
    torch.testing.assert_close(loaded.head.weight, head.weight)
    torch.testing.assert_close(loaded(IMAGES), saved(IMAGES))
    with pytest.raises(FileExistsError, match=r"mine\.safetensors exists"):
        save_recognizer(saved, path)
    save_recognizer(saved, path, overwrite=True)
    assert [p.name for p in path.parent.iterdir()] == ["mine.safetensors"]


def test_names_the_closest_architecture(tmp_path: Path, mobile: nn.Module) -> None:
    state = dict(mobile.state_dict())
    state["extra"] = state.pop("conv_sep.layers.0.weight")
    state["features.layers.2.weight"] = torch.zeros(256, 512)
    path = tmp_path / "odd.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match="closest is mobilefacenet") as error:
        load_recognizer(path)
    for part in (
        "odd.pth",
        "1 missing (conv_sep.layers.0.weight)",
        "1 unexpected (extra)",
        "1 misshapen (features.layers.2.weight (256, 512) instead of (512, 512))",
    ):
        assert part in str(error.value)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, zipped: bool) -> None:
    trace, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    contents = {"state_dict": {"model.x": torch.zeros(1)}, "callbacks": Bomb(trace)}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.ckpt: refused, .* posix\.system"):
        load_recognizer(path)
    assert not trace.exists()


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(500_000)}, tmp_path / "plain.pth")
    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for item in plain.infolist():
            bomb.writestr(item.filename, plain.read(item))
    with pytest.raises(ValueError, match=r"bomb\.pth: claims to unpack to 2\d{6} bytes"):
        load_recognizer(path)


def test_tensors_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    torch.save({"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(ValueError, match=r"huge\.pth: 'fc\.weight' claims shape"):
        load_recognizer(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "not an object"),
        ('{"architecture": "vit"}', "unknown architecture 'vit'"),
        ('{"architecture": "mobilefacenet"}', "unusable input description None"),
        (
            '{"architecture": "mobilefacenet", "input": {"size": 1000000000, "rgb": 1, '
            '"mean": [0, 0, 0], "std": [1, 1, 1]}}',
            "size must be 8 to 1024",
        ),
        (
            '{"architecture": "mobilefacenet", "input": {"size": 64, "rgb": true, '
            '"mean": [0, 0, 0], "std": [1, 1, 1]}}',
            "mobilefacenet takes no 64x64 images",
        ),
        ('{"architecture": "mobilefacenet", "head": {"kind": "magic"}}', "unusable head"),
        ('{"architecture": "mobilefacenet", "head": {"kind": "cosface"}}', "has no .* weight"),
        ('{"architecture": "ir_18"}', "does not hold the ir_18 it claims to: .* missing"),
    ],
)
def test_bad_metadata(tmp_path: Path, mobile: nn.Module, metadata: str, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    state = {f"backbone.{key}": value for key, value in mobile.state_dict().items()}
    save_file(state, path, {"sarface_recognizer": metadata})
    with pytest.raises(ValueError, match=rf"bad\.safetensors.*{message}"):
        load_recognizer(path)


def test_not_a_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt: damaged, or neither"):
        load_recognizer(path)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"'resnet99'.*known names are resnet29"):
        load_recognizer("resnet99")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("small")
    state = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}
    torch.save({"state_dict": state}, folder / "new")
    torch.save({"state_dict": state}, folder / "old", _use_new_zipfile_serialization=False)
    save_file(state, folder / "safe", {"sarface_recognizer": "{}"})
    return [(folder / name).read_bytes() for name in ("new", "old", "safe")]


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.integers(0, 2),
    length=st.just(1.0) | st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_end_in_a_clear_error(tmp_path, small_files, kind, length, flips) -> None:
    data = np.frombuffer(small_files[kind], np.uint8).copy()
    for position, value in flips:
        data[int(position * len(data))] ^= value
    path = tmp_path / "damaged.file"
    path.write_bytes(data[: round(length * len(data))].tobytes())
    with contextlib.suppress(ValueError):  # nothing else may come out
        read_checkpoint(path)
