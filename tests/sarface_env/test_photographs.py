"""Photographs in the environment: who is in which split, pixels, occlusion, cache, bad input."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from torch import nn

from recognizer.data import convert
from recognizer.data.align import ARCFACE_112, RESNET29_150
from recognizer.data.faces import FaceSet
from recognizer.data.folder import LANDMARK_COLUMNS
from recognizer.loader import load_recognizer
from recognizer.recognizer import InputSpec, Recognizer
from sarface_env import SARFaceEnv, photographs
from sarface_env.options import EnvOptions, own_scorer
from sarface_env.photographs import Photographs, load_photographs, pairs_among, parse_folds
from sarface_env.scorers import EnrolledScorer
from segmenter import load_parser
from tests.recognizer.test_chips import brightest, draw
from tests.toys import ToyScorer, toy_faces

TEMPLATE = ARCFACE_112.resized(112)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SARFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_folder(root: Path, people: int = 12, images: int = 2, size: int = 96) -> Path:
    """Noise in LFW's form, its landmarks on ArcFace's template up to scale and shift."""
    rng = np.random.default_rng(0)
    lines = [",".join(LANDMARK_COLUMNS)]
    for person in range(people):
        name = f"p{person:02d}"
        (root / "images" / name).mkdir(parents=True)
        for number in range(1, images + 1):
            path = root / "images" / name / f"{name}_{number:04d}.png"
            cv2.imwrite(str(path), rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
            points = TEMPLATE * 0.6 + rng.uniform(5, 20, 2)
            lines.append(f"{path.name}," + ",".join(f"{v:.3f}" for v in points.ravel()))
    (root / "landmarks.csv").write_text("\n".join(lines) + "\n")
    return root


def load(root: Path, **options) -> FaceSet:
    return load_photographs(Photographs(str(root), **{"parse": False, **options}))


def test_splits_share_nobody_and_lose_nobody(tmp_path):
    root = make_folder(tmp_path / "set", people=20)
    shutil.rmtree(root / "images" / "p07")
    (root / "images" / "p03" / "p03_0002.png").unlink()  # one image left: cannot be a target
    sets = [load(root, split=split) for split in ("train", "val", "test")]
    names = [name for faces in sets for name in faces.names]
    assert sorted(names) == sorted({f"p{i:02d}" for i in range(20)} - {"p03", "p07"})
    assert [len(faces.names) for faces in sets] == [12, 3, 3]
    for faces in sets:
        assert [faces.names[label] for label in faces.labels] == [f[:3] for f in faces.files]
        assert len(faces.files) == 2 * len(faces.names)
    # Whoever else is there, a person's files are hashed alike: the same split from a copy.
    copy = shutil.copytree(root, tmp_path / "copy")
    assert load(copy, split="val").names == sets[1].names


@pytest.mark.parametrize("least", [1, 3])
def test_people_with_one_image_are_trained_on_when_asked_and_nobody_changes_split(tmp_path, least):
    root = make_folder(tmp_path / "set", people=20, images=3)
    one, two = "p03", "p08"
    for name in ("p03/p03_0002", "p03/p03_0003", "p08/p08_0003"):
        (root / "images" / f"{name}.png").unlink()
    before = {split: set(load(root, split=split).names) for split in ("train", "val", "test")}
    after = set(load(root, split="train", min_images=least).names)
    assert after == (before["train"] | {one} if least == 1 else before["train"] - {two})
    assert one not in before["val"] | before["test"]


def test_who_has_one_photograph_is_known_by_it(tmp_path):
    root = make_folder(tmp_path / "set", people=20)
    (root / "images" / "p03" / "p03_0002.png").unlink()
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 16))
    recognizer = Recognizer(network, InputSpec(), name="plain")
    options = EnvOptions(str(root), "train", recognizer="resnet29", partition="grid2x2")
    few = own_scorer(options, recognizer)
    every = own_scorer(replace(options, min_images=1), recognizer)
    assert len(every.targets) == len(few.targets) + 1
    assert set(every.gallery.names) - set(few.gallery.names) == {"p03"}
    whole = every.gallery.embeddings[every.gallery.labels == every.gallery.names.index("p03")]
    assert torch.allclose(every.gallery.weights[every.gallery.names.index("p03")], whole[0])
    assert own_scorer(replace(options, min_images=1, split="val"), recognizer).gallery.single == []
    with pytest.raises(ValueError, match="min_images must be at least 1, got 0"):
        replace(options, min_images=0)


def test_splits_by_folds_of_pairs(tmp_path, caplog):
    root = make_folder(tmp_path / "set", people=13)
    lines = ["3\t2"]
    for fold in range(3):
        a, b, c, d = (f"p{4 * fold + k:02d}" for k in range(4))
        lines += [f"{a}\t1\t2", f"{b}\t1\t2", f"{a}\t1\t{c}\t1", f"{b}\t1\t{d}\t2"]
    lines[1] = "p00\t1\t9"  # there is no ninth image
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    faces = load(root, split="val", folds="1/3/2")
    assert faces.names == ["p08", "p09", "p10", "p11"]
    assert "p00_0009" in caplog.text
    assert "1 people are in no fold: p12" in caplog.text
    with pytest.raises(ValueError, match=r"has the folds 1 to 3, there is no 4"):
        load(root, folds="4-5/1/2")
    (root / "pairs.txt").write_text("\n".join(lines).replace("p04", "p08") + "\n")
    with pytest.raises(ValueError, match=r"people are in several folds, for example p08"):
        load(root, folds="1/3/2")
    (root / "pairs.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"folds need a pairs\.txt"):
        load(root, folds="1/3/2")


def test_images_of_pairs_alone(tmp_path, caplog):
    root = make_folder(tmp_path / "set", people=9, images=3)
    lines = ["3\t1"]
    for fold in range(3):
        a, b = f"p{3 * fold:02d}", f"p{3 * fold + 1:02d}"
        lines += [f"{a}\t1\t3", f"{a}\t2\t{b}\t2"]
    lines[2] = "p00\t2\tp01\t8"
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    faces = load(root, pairs=(1, 3))
    wanted = ["00_1", "00_3", "06_1", "06_2", "06_3", "07_2"]
    assert faces.files == [f"p{name[:2]}/p{name[:2]}_000{name[3]}.png" for name in wanted]
    pairs, unusable = pairs_among(root, [3, 1], faces.files)
    assert [[faces.files[i][-10:-4] for i in pair] for pair in pairs.pairs] == [
        ["0_0001", "0_0003"],
        ["6_0001", "6_0003"],
        ["6_0002", "7_0002"],
    ]
    assert pairs.fold.tolist() == [1, 0, 0]
    assert unusable == 0  # the pair with p01_0008 was no pair to begin with
    with pytest.raises(ValueError, match=r"has the folds 0 to 2, not \[3\]"):
        load(root, pairs=(4,))
    assert "p01_0008" in caplog.text


@pytest.mark.parametrize("bad", ["", "1-5", "1/2", "1-3/3/4", "0/1/2", "a/b/c", "1//2", "3-2/4/5"])
def test_bad_folds(bad):
    with pytest.raises(ValueError, match=r"folds .* got"):
        parse_folds(bad)
    assert parse_folds("1-3,7/4/5-6") == {"train": [1, 2, 3, 7], "val": [4], "test": [5, 6]}


def load_all(root: Path, **options) -> dict[str, torch.Tensor]:
    """The images of all splits by file name."""
    sets = [load(root, split=split, **options) for split in ("train", "val", "test")]
    return {f: image for s in sets for f, image in zip(s.files, s.images, strict=True)}


def test_faces_of_any_picture_size_are_aligned(tmp_path):
    lines = [",".join(LANDMARK_COLUMNS)]
    for number in range(12):
        size = (90, 150, 1200, 260)[number % 4]
        path = tmp_path / "set" / f"p{number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        turn = np.exp(0.1j * (number - 6))
        z = (RESNET29_150.resized(150) @ (1, 1j) - 75 - 75j) * 0.9 * turn + 75 + 75j
        points = np.stack([z.real, z.imag], 1)
        picture = cv2.resize(draw(points, 150), (size, size))
        cv2.imwrite(str(path), picture[:, : size - number])
        points = (points + 0.5) * size / 150 - 0.5
        lines.append(f"{number}.png," + ",".join(f"{v:.3f}" for v in points.ravel()))
    (tmp_path / "set" / "landmarks.csv").write_text("\n".join(lines) + "\n")
    faces = load_all(tmp_path / "set", size=150)
    assert len(faces) == 12
    target = RESNET29_150.resized(150)
    for image in faces.values():
        assert np.abs(brightest(image[0].numpy(), target) - target).max() < 0.5


def test_large_pictures_are_averaged_not_sampled(tmp_path):
    root = make_folder(tmp_path / "set", people=6, size=1200)
    board = np.indices((1200, 1200)).sum(0) % 2 * 255
    for path in (root / "images").glob("*/*.png"):
        cv2.imwrite(str(path), np.repeat(board[..., None], 3, 2).astype(np.uint8))
    lines = (root / "landmarks.csv").read_text().splitlines()
    points = ",".join(f"{v:.1f}" for v in (TEMPLATE * 10 + 30).ravel())
    body = [line.split(",")[0] + "," + points for line in lines[1:]]
    (root / "landmarks.csv").write_text("\n".join([lines[0], *body]) + "\n")
    for image in load_all(root).values():
        assert (image[:, 8:-8, 8:-8].float() - 127.5).abs().max() < 8


def test_occlusion_is_the_cameras_and_the_same_every_time(tmp_path, cache):
    root = make_folder(tmp_path / "set")
    clean = load(root)
    first = load(root, occlusion="mixed", parse=True)
    torch.testing.assert_close(first.clean, clean.images)
    changed = (first.images != first.clean).any(1)
    assert not (changed & ~first.occluders).any()
    assert changed.any()
    # The parser saw the occluded picture.
    parser = load_parser("light")
    assert torch.equal(first.parsing, parser.parse(first.images))
    assert not torch.equal(first.parsing, parser.parse(first.clean))
    # Where a patch comes from depends on the split; its place, and all else, on the file's name.
    shutil.rmtree(root / "images" / first.names[0])
    again = load(root, occlusion="mixed")
    where = {name: i for i, name in enumerate(first.files)}
    both = [(i, where[name]) for i, name in enumerate(again.files) if name in where]
    assert len(both) > 8
    for i, j in both:
        assert torch.equal(again.occluders[i], first.occluders[j])
    other = load(root, occlusion="mixed", occlusion_seed=1)
    assert not torch.equal(other.occluders, again.occluders)


def test_several_coverings_are_so_many_rounds_of_all_faces(tmp_path):
    root = make_folder(tmp_path / "set")
    once = [load(root, occlusion="mixed", occlusion_seed=seed, parse=True) for seed in (5, 6)]
    twice = load(root, occlusion="mixed", occlusion_seed=5, coverings=2, parse=True)
    n = len(once[0])
    assert len(twice) == len(twice.parsing) == len(twice.occluders) == 2 * n
    assert torch.equal(twice.clean, once[0].clean)
    assert twice.files == 2 * once[0].files
    for faces, part in zip(once, (slice(n), slice(n, 2 * n)), strict=True):
        assert torch.equal(twice.images[part], faces.images)
        assert torch.equal(twice.occluders[part], faces.occluders)
        assert torch.equal(twice.parsing[part], faces.parsing)
        assert torch.equal(twice.labels[part], faces.labels)


def test_images_covered_alike_share_an_occluder_in_random_groups(tmp_path):
    root = make_folder(tmp_path / "set", people=10, images=3)
    faces = load(root, occlusion="patch", coverings=2, alike=4)
    n = len(faces.clean)
    assert n % 4  # so that a group is smaller
    assert torch.equal(faces.alike[:, 0], torch.arange(2 * n))
    groups = {tuple(sorted(set(row))) for row in faces.alike.tolist()}
    assert sorted(face for group in groups for face in group) == list(range(2 * n))
    assert sorted(map(len, groups)) == sorted([*[4] * (2 * (n // 4)), *[n % 4] * 2])
    for group in groups:
        assert len({face // n for face in group}) == 1  # of one round
        assert all(torch.equal(faces.occluders[group[0]], faces.occluders[i]) for i in group)
    first = {group for group in groups if group[0] < n}
    second = {tuple(face - n for face in group) for group in groups - first}
    assert len(first & second) < len(first)  # other groups in every round
    # Somebody's occluder is its own: that of the image covered by itself.
    alone = load(root, occlusion="patch", coverings=2)
    assert alone.alike is None
    for group in groups:
        assert any(torch.equal(faces.occluders[i], alone.occluders[i]) for i in group)


def test_groups_must_name_faces_for_every_face():
    faces = toy_faces(4)
    for alike in (torch.zeros((3, 2), dtype=torch.int64), torch.zeros((4, 2))):
        with pytest.raises(ValueError, match=r"alike must be int64 \(4, G\)"):
            replace(faces, alike=alike)


def test_made_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "set")
    before = load(root, occlusion="mask")
    with monkeypatch.context() as patch:
        patch.setattr(photographs, "_make", None)
        after = load(root, occlusion="mask")
        assert torch.equal(before.images, after.images)
        assert before.files == after.files
        (tmp_path / "elsewhere").symlink_to(root)  # the same files by another path
        assert len(load(tmp_path / "elsewhere", occlusion="mask")) == len(before)
        with pytest.raises(TypeError):
            load(root, occlusion="mask", severity=1.5)
    cv2.imwrite(str(root / "images" / before.files[0]), np.zeros((96, 96, 3), np.uint8))
    changed = load(root, occlusion="mask")
    assert (changed.clean[0] == 0).all()


def test_an_interrupted_cache_is_not_taken_for_a_finished_one(tmp_path, monkeypatch, cache):
    root = make_folder(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(photographs, "_occlude", None)
        with pytest.raises(TypeError):
            load(root, occlusion="mask")
    assert not list(cache.glob("**/*.npy"))
    assert load(root, occlusion="mask").clean is not None


def test_odd_images_are_used_and_bad_ones_listed_together(tmp_path, caplog):
    root = make_folder(tmp_path / "set", people=8, images=3)
    folder = root / "images"
    grey = np.tile(np.arange(96, dtype=np.uint8), (96, 1))
    colour = np.repeat(grey[..., None], 3, 2)
    odd = {
        "p00_0001": grey,
        "p00_0002": colour.astype(np.uint16) * 257,
        "p00_0003": np.dstack([colour, np.full_like(grey, 200)]),
        "p01_0001": colour[:7, :7],
    }
    for name, image in odd.items():
        cv2.imwrite(str(folder / name[:3] / f"{name}.png"), image)
    (folder / "p02" / "p02_0001.png").write_bytes(b"not an image")
    cut = (folder / "p02" / "p02_0002.png").read_bytes()
    (folder / "p02" / "p02_0002.png").write_bytes(cut[:2000])
    text = (root / "landmarks.csv").read_text().splitlines()
    far = [",".join([line.split(",")[0], *["999"] * 10]) for line in text if "p03_0001" in line]
    kept = [line for line in text if "p03" not in line]
    (root / "landmarks.csv").write_text("\n".join(kept + far) + "\n")
    # One split with everybody but p07.
    lines = ["2\t4", *(f"p0{i}\t1\t3" for i in range(4)), *(f"p0{i}\t3\tp04\t3" for i in range(4))]
    lines += [f"p0{i}\t1\t2" for i in (5, 6, 5, 6)] + ["p05\t1\tp06\t1"] * 4
    lines[-1] = "p05\t1\tp06\t9"
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        faces = load(root, folds="1-2/3/4")
    report = [r.getMessage() for r in caplog.records]
    assert len(report) == 1  # people, images and pairs in one list
    assert "pairs or images of pairs.txt are left out" in report[0]
    assert "p06_0009" in report[0]
    for text in ("3 images cannot be used", "p01_0001.png: 7x7 pixels", "p02_0001.png", "cut off"):
        assert text in report[0]
    # Of noise without landmarks the parser makes no face, or something it takes for one.
    assert "3 images without usable points in landmarks.csv; they are parsed" in report[0]
    assert "1 people lose so many images by this that they are left out: p02" in report[0]
    assert "p02" not in faces.names
    assert "p01" in faces.names
    rows = [faces.files.index(f"p00/p00_000{i}.png") for i in (1, 2, 3)]
    for row in rows:  # all three show the same ramp, in grey
        assert (faces.images[row, 0] == faces.images[row, 2]).all()
        assert faces.images[row].float().std() > 5


def test_records_and_lists_hold_the_same_faces(tmp_path):
    source = tmp_path / "in"
    rng = np.random.default_rng(0)
    for person in range(9):
        (source / f"n{person}").mkdir(parents=True)
        for number in (1, 2):
            image = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
            cv2.imwrite(str(source / f"n{person}" / f"n{person}_{number:04d}.png"), image)
    convert.folder_to_records(source, tmp_path / "rec")
    paths = sorted(source.glob("*/*.png"))
    rows = [f"1\t{path.relative_to(source)}\t{path.parent.name[1:]}" for path in paths]
    (source / "faces.lst").write_text("\n".join(rows) + "\n")
    for path in (source, source / "faces.lst", tmp_path / "rec", tmp_path / "rec" / "train.rec"):
        sets = [load(path, split=split) for split in ("train", "val", "test")]
        assert sum(len(faces) for faces in sets) == 18
        # 112x112 without landmarks: ArcFace's template, so the very pixels.
        found = {image.numpy().tobytes() for faces in sets for image in faces.images}
        assert found == {cv2.imread(str(p)).transpose(2, 0, 1).tobytes() for p in paths}


def test_too_few_people_and_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"val split has 0 people with 2 or more usable"):
        load(make_folder(tmp_path / "set", people=2), split="val")
    with pytest.raises(FileNotFoundError, match=r"no faces at .*expected a folder of NAME"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images; expected NAME"):
        load(tmp_path / "empty")


class Pooled(nn.Module):
    """Embeds a face by the colours of its quarters."""

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1)


def test_enrolled_scorer_by_hand():
    """Leave one out, face by face, from the embeddings of single clean images and their mirrors."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (9, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images = clean.repeat(2, 1, 1, 1)  # every face covered in two ways
    images[:9, :, 4:] = 0
    images[9:, :, :, 5:] = 0
    people = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1])
    labels = people.repeat(2)
    recognizer = Recognizer(Pooled(), InputSpec(8, False, (99.0, 80.0, 120.0), (1.0,) * 3)).eval()
    faces = FaceSet(images, labels, ["a", "b", "c"], clean=clean)
    scorer = EnrolledScorer(recognizer, faces, "cpu")
    got = scorer.score(images, scorer.targets)

    def unit(image):
        return F.normalize(recognizer(image[None])[0], dim=0)

    enrolled = [
        F.normalize(recognizer(x[None])[0] + recognizer(x[None].flip(-1))[0], dim=0) for x in clean
    ]
    for i in range(18):
        cosines = []
        for person in range(3):
            members = [enrolled[j] for j in range(9) if people[j] == person and j != i % 9]
            cosines.append(float(unit(images[i]) @ F.normalize(sum(members), dim=0)))
        own = cosines.pop(int(labels[i]))
        assert got.margin[i] == pytest.approx(own - max(cosines), abs=1e-5)
        assert got.correct[i] == (own > max(cosines))
    with pytest.raises(ValueError, match=r"1 people have a single image.*: d"):
        EnrolledScorer(
            recognizer,
            FaceSet(clean, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3]), ["a", "b", "c", "d"]),
            "cpu",
        )


def test_names_in_gym_make(tmp_path):
    root = make_folder(tmp_path / "set")
    env = SARFaceEnv(dataset=root, recognizer=ToyScorer(), occlusion="patch", partition="grid2x2")
    assert env.core.faces.occluders is not None
    assert env.core.faces.parsing is None  # a grid needs none
    for options, message in (
        ({"dataset": "/nowhere"}, "unknown dataset '/nowhere'"),
        ({"occlusion": "fog"}, "unknown occlusion 'fog'; there are clean, patch, object"),
        ({"severity": 9}, r"severity must be in 0.25 to 2"),
        ({"folds": "1-2"}, r"folds are TRAIN/VAL/TEST"),
        ({"recognizer": "faceworld"}, "knows no photographs"),
        ({"dataset": "faceworld", "occlusion": "mask"}, "are for photographs"),
    ):
        with pytest.raises(ValueError, match=message):
            SARFaceEnv(**{"dataset": str(root), "recognizer": ToyScorer(), **options})


def test_labels_above_18_are_named_at_once():
    faces = toy_faces()
    faces.parsing[[3, 7], 0, 0] = 19
    with pytest.raises(ValueError, match=r"0 to 18; those of 2 faces .* \[3, 7\]"):
        SARFaceEnv(dataset=faces, recognizer=ToyScorer())


@pytest.fixture
def some_faces(data_dir, tmp_path) -> Path:
    """The three first images of each of the 14 first people with so many."""
    root = tmp_path / "some"
    people = sorted((data_dir / "lfw_dev" / "images").iterdir())
    chosen = [p for p in people if len(list(p.iterdir())) >= 3][:14]
    for person in chosen:
        (root / "images" / person.name).mkdir(parents=True)
        for image in sorted(person.iterdir())[:3]:
            shutil.copy(image, root / "images" / person.name)
    shutil.copy(data_dir / "lfw_dev" / "landmarks.csv", root)
    return root


@pytest.mark.data
def test_real_faces_from_names_alone(some_faces):
    try:
        load_recognizer("resnet29", device="cpu")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    options = {"dataset": str(some_faces), "recognizer": "resnet29", "occlusion": "mask"}
    env = gym.make("SARFace-v0", **options)
    check_env(env.unwrapped)
    core = env.unwrapped.core
    assert core.faces.images.shape == (30, 3, 150, 150)
    everyone = torch.arange(30)
    # Ten people with two other images each: a recognizer of 98.9 % on LFW knows them.
    assert core.full_score(everyone).correct.float().mean() >= 0.8
    clean = EnrolledScorer(core.scorer.recognizer, core.faces, "cpu")
    margin = clean.score(core.faces.clean, everyone).margin
    assert margin.mean() > core.full_score(everyone).margin.mean() + 0.01
    # What covers the mouth is not taken for skin: most of it can be dropped.
    below = core.faces.occluders & (core.faces.parsing != 1)
    assert below.sum() > 0.3 * core.faces.occluders.sum()


@pytest.mark.data
def test_parsing_aligns_nearly_as_landmarks_do(some_faces, caplog):
    by_landmarks = load(some_faces)
    (some_faces / "landmarks.csv").unlink()
    caplog.set_level(logging.INFO)
    by_parsing = load(some_faces)
    assert by_parsing.files == by_landmarks.files
    assert "30 aligned by points from the parsing" in caplog.text
    a, b = (faces.images.float().flatten(1) for faces in (by_landmarks, by_parsing))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    correlation = F.cosine_similarity(a, b)
    assert correlation.median() > 0.9
