"""`python -m benchmarks.policies`: what is embedded and compared, oracles, bad input."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train_agent
from benchmarks import common, policies, verification
from benchmarks.mask_policies import OracleScorer
from benchmarks.masked_pairs import Judge, load_pair_faces
from recognizer.backbones import build_backbone
from recognizer.checkpoint import save_recognizer
from recognizer.data.align import ARCFACE_112
from recognizer.data.occlusion import OCCLUSIONS, kinds_drawn, occlude
from recognizer.engine import InferenceEngine
from recognizer.loader import load_recognizer
from recognizer.recognizer import InputSpec, Recognizer
from recognizer.verification import normalized_distances, pair_distances, verify
from sarface_env.photographs import Photographs, load_photographs


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SARFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    save_recognizer(Recognizer(build_backbone("ir_tiny"), InputSpec(), name="ir_tiny"), path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three folds of four people, told apart by a pattern that survives their images' noise."""
    root, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    lines = ["3\t3"]
    for fold in range(3):
        names = [f"p{fold}{k}" for k in range(4)]
        for name in names:
            pattern = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (112, 112))
            for index in (1, 2)[: 1 if name == "p23" else 2]:
                path = root / "images" / name / f"{name}_{index:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = rng.integers(0, 90, pattern.shape, np.uint8)
                cv2.imwrite(str(path), cv2.add(pattern // 2, noise))
        a, b, c, d = names
        lines += [f"{n}\t1\t2" for n in (a, b, c)]
        lines += [f"{a}\t1\t{b}\t1", f"{a}\t2\t{c}\t1", f"{b}\t2\t{d}\t1"]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root


def judge_of(folder: Path, weights: str, cohort=None, **options) -> Judge:
    photographs = Photographs(str(folder), size=112, **{"occlusion": "patch", **options})
    data = load_pair_faces(photographs, [2, 3], [1], [0, 1])
    engine = InferenceEngine(load_recognizer(weights, "cpu"))
    return Judge(engine, data, samples=20, cohort=cohort)


def test_masked_images_are_what_is_embedded(folder, weights):
    judge = judge_of(folder, weights)
    data = judge.data
    faces, n = data.faces, len(data.faces)
    keep = torch.rand((n, 14, 14), generator=torch.Generator().manual_seed(0)) < 0.7
    keep = keep.repeat_interleave(8, 1).repeat_interleave(8, 2)
    keep[3] = True
    got = judge.masked(keep, "zero", "")
    network = load_recognizer(weights, "cpu")
    with torch.no_grad():
        shown = faces.images * keep[:, None]
        embeddings = F.normalize(network(shown) + network(shown.flip(-1)))
        clean = data.clean.images
        enrolled = F.normalize(network(clean) + network(clean.flip(-1)))
    expected = verify(
        pair_distances(embeddings, data.pairs), data.same, data.fold, samples=0, only=[2, 3]
    )
    assert got["verification"].metrics == pytest.approx(expected.metrics, abs=1e-6)
    # Rank-1 by hand, among those with two images, whose other image they are known by.
    names = [file.split("/")[0] for file in faces.files]
    first, right = names[: n // 2], []
    for i in np.flatnonzero(judge.probes):
        assert first.count(names[i]) == 2
        others = {}
        for j, name in enumerate(first):
            if first.count(name) == 2 and j != i % (n // 2):
                others.setdefault(name, []).append(enrolled[j])
        cosine = {k: float(embeddings[i] @ F.normalize(sum(v), dim=0)) for k, v in others.items()}
        right.append(max(cosine, key=cosine.get) == names[i])
    assert got["right"].tolist() == right
    # Two occlusions, two folds; of the fourth person of a fold, one image is in pairs.
    assert len(right) == 2 * 2 * 6


def test_differences_are_paired(folder, weights):
    judge = judge_of(folder, weights)
    other = judge.masked(torch.zeros(len(judge.data.faces), 112, 112).bool(), "mean", "")
    same = judge.difference(judge.full, judge.full)
    for entry in same.values():
        assert entry["mean"] == 0
        assert list(entry["interval_95"]) == [0, 0]
    # Nothing left: every distance is zero, and nobody is told from anybody.
    assert other["verification"].metrics["accuracy"] == pytest.approx(0.5)
    found = judge.difference(judge.full, other)["accuracy"]
    expected = judge.full["verification"].metrics["accuracy"] - 0.5
    assert found["mean"] == pytest.approx(expected)


def test_a_cohort_judges_pairs_relatively_as_well(folder, weights):
    plain = judge_of(folder, weights)
    strangers = Photographs(str(folder), split="train", folds="1/2/3", size=112, parse=False)
    cohort = load_photographs(strangers)
    judge = judge_of(folder, weights, cohort)
    assert set(cohort.names) == {"p00", "p01", "p02", "p03"}
    summary = judge.summary(judge.full)
    relative = summary.pop("normalized")
    assert summary == plain.summary(plain.full)
    data, network = judge.data, load_recognizer(weights, "cpu")
    with torch.no_grad():
        first, own = (
            F.normalize(network(images) + network(images.flip(-1)))
            for images in (data.faces.images, cohort.images)
        )
    people = F.normalize(torch.stack([own[cohort.labels == i].sum(0) for i in range(4)]))
    distance = normalized_distances(first, data.pairs, people)
    expected = verify(distance, data.same, data.fold, samples=0, only=[2, 3])
    assert relative["metrics"] == pytest.approx(expected.metrics, abs=1e-6)
    keys = judge.difference(judge.full, judge.full)
    assert "normalized accuracy" in keys
    assert "normalized accuracy" not in plain.difference(plain.full, plain.full)


def test_oracle_scorer_knows_the_single_by_themselves(folder, weights):
    judge = judge_of(folder, weights, occlusion="clean")
    scorer = OracleScorer(judge)
    score = scorer.score(judge.data.faces.images, scorer.targets)
    alone = [file.split("/")[0].endswith("3") for file in judge.data.faces.files]
    assert score.correct[alone].all()
    # Alone, they are known by this very image, up to its mirror image; all others are not.
    clean = judge.data.clean.images
    network = load_recognizer(weights, "cpu")
    with torch.no_grad():
        own = F.normalize(network(clean) + network(clean.flip(-1)))
    rows = torch.arange(len(clean))
    cosine = scorer.gallery.cosines(own, rows)[rows, scorer.gallery.labels]
    alone = torch.tensor(alone[: len(clean)])
    assert (cosine[alone] > 1 - 1e-5).all()
    assert (cosine[~alone] < 1 - 1e-3).all()


def test_kinds_drawn_are_those_that_were_drawn():
    images = torch.full((40, 3, 112, 112), 128, dtype=torch.uint8)
    images[:, :, :, :8] = torch.arange(40, dtype=torch.uint8)[:, None, None, None]
    covered = occlude(images, ARCFACE_112, "mixed", 3)[1].flatten(1).any(1)
    kinds = kinds_drawn("mixed", 3, np.arange(40))
    assert set(kinds) == {*OCCLUSIONS, "none"} - {"mixed"}
    assert [kind != "none" for kind in kinds] == covered.tolist()


def test_table_json_figure_and_runs(folder, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(policies, "RESULTS", tmp_path / "results")
    common_options = ["--data", str(folder), "--recognizer", weights, "--device", "cpu"]
    train_agent.main(
        [*common_options, "--folds", "1/2/3", "--occlusion", "patch", "--partition", "grid2x2"]
        + ["--run", str(tmp_path / "learned"), "--steps", "16", "--num_envs", "8"]
        + ["--fixed_mask_faces", "4", "--obs_size", "32", "--eval_faces", "4"]
    )
    policies.main(
        [*common_options, "--folds", "1/2/3", "--occlusion", "patch", "--samples", "50"]
        + ["--policies", *policies.POLICIES, "fixed@sarface24", str(tmp_path / "learned")]
        + ["--fixed-calls", "50"]
        + ["--examples", str(tmp_path / "examples.png")]
    )
    found = json.loads((tmp_path / "results" / "policies.json").read_text())
    rows = {row["name"]: row for row in found["policies"]}
    assert list(rows) == [*policies.POLICIES, "fixed@sarface24", "learned"]
    assert rows["fixed@sarface24"]["partition"] == "sarface24"
    assert found["pairs"] == 6
    for row in rows.values():
        assert row["full"]["accuracy"] == rows["keep-all"]["metrics"]["accuracy"]
        assert row["differences"]["keep-all"].keys() == row["differences"]["fixed"].keys()
    assert rows["keep-all"]["dropped"]["kept"] == 1
    exact = rows["oracle-occluder"]["dropped"]["kinds"]["patch"]
    assert (exact["occluder"], exact["rest"]) == (1, 0)
    assert rows["learned"]["partition"] == rows["greedy"]["partition"] == "grid2x2"
    assert (tmp_path / "results" / "policies.png").stat().st_size > 10_000
    assert (tmp_path / "examples.png").stat().st_size > 10_000
    assert "6 pairs" in capsys.readouterr().out
    # An agent that looked at another recognizer's images is told before the work.
    config = json.loads((tmp_path / "learned" / "config.json").read_text())
    config["env"]["obs_size"] = None
    (tmp_path / "learned" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"looks at images of 32 pixels, .* at 112"):
        policies.main([*common_options, "--policies", str(tmp_path / "learned"), "--overwrite"])


def test_seeds_are_averaged(folder, weights):
    judge = judge_of(folder, weights)
    nothing = torch.zeros(len(judge.data.faces), 112, 112).bool()
    results = [judge.full, judge.masked(nothing, "mean", "")]
    runs = [
        {"name": f"a-{i}", "run": True, "seconds": 1, "result": r, "dropped": {"kept": 1 - i}}
        | {"full": results[1 - i]}  # runs may bring recognizers of their own
        for i, r in enumerate(results)
    ]
    (mean,) = policies.mean_over_seeds([*runs, {**runs[0], "name": "b-0"}])
    assert (mean["name"], mean["dropped"], mean["seconds"]) == ("a, 2 seeds", {"kept": 0.5}, 2)
    found = mean["result"]["verification"]
    one, other = (result["verification"] for result in results)
    assert found.metrics["accuracy"] == pytest.approx((one.metrics["accuracy"] + 0.5) / 2)
    assert mean["full"]["verification"].metrics["accuracy"] == found.metrics["accuracy"]
    both = (one.samples["accuracy"] + other.samples["accuracy"]) / 2
    expected = np.percentile(both, [2.5, 97.5])
    assert list(found.intervals["accuracy"]) == pytest.approx(list(expected))


def test_means_over_seeds_are_compared_with_each_other(folder, weights):
    judge = judge_of(folder, weights)
    everything = torch.ones(len(judge.data.faces), 112, 112).bool()
    full, nothing = judge.full, judge.masked(~everything, "mean", "")
    runs = [
        {"name": f"{name}-{seed}", "run": True, "seconds": 1, "judge": judge}
        | {"result": result, "full": nothing, "dropped": {"kept": 1}}
        for name, results in (("a", [full, nothing]), ("b", [full, full]))
        for seed, result in enumerate(results)
    ]
    found = [*runs, *policies.mean_over_seeds(runs)]
    rows = policies.Bench.rows(SimpleNamespace(main=judge), found)  # type: ignore[arg-type]
    rows = {row["name"]: row["differences"] for row in rows}
    assert set(rows["a-0"]) == {"keep-all", "full"}
    gain = (0.5 - full["verification"].metrics["accuracy"]) / 2
    assert rows["a, 2 seeds"]["b, 2 seeds"]["accuracy"]["mean"] == pytest.approx(gain)
    assert rows["a, 2 seeds"]["b, 2 seeds, full"]["accuracy"]["mean"] == pytest.approx(-gain)


def test_a_few_pairs(folder, weights):
    few = load_pair_faces(Photographs(str(folder), size=112, occlusion="patch"), [2], [3], [0], 1)
    assert few.fold.tolist() == [2, 2, 3, 3]
    assert few.same.tolist() == [True, False] * 2
    names = [[few.faces.files[i][4:12] for i in pair] for pair in few.pairs]
    assert names == [
        ["p10_0001", "p10_0002"],
        ["p10_0001", "p11_0001"],
        ["p20_0001", "p20_0002"],
        ["p20_0001", "p21_0001"],
    ]
    assert len(few.faces) == 6
    assert [few.faces.names[label] for label in few.faces.labels] == [
        file[:3] for file in few.faces.files
    ]


def test_clean_faces_give_the_protocols_numbers(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    options = ["--data", str(folder), "--recognizer", weights, "--device", "cpu"]
    verification.main(options)
    policies.main([*options, "--policies", "keep-all", "--output", str(tmp_path), "--samples", "9"])
    protocol = json.loads((tmp_path / "verification.json").read_text())["rows"][0]
    ours = json.loads((tmp_path / "policies.json").read_text())["policies"][0]
    assert ours["metrics"] == pytest.approx(protocol["metrics"])


def test_bad_input(folder, weights, tmp_path, caplog):
    def fails(message: str, *options: str) -> None:
        with pytest.raises(SystemExit, match=message):
            policies.main(["--data", str(folder), "--recognizer", weights, *options])

    fails(r"nothing is neither a run .* nor the name of a policy", "--policies", "nothing")
    several = ["--policies", "random@hexagons", "nothing", "--fill", "red", "--severity", "9"]
    listed = "nothing is neither(.|\\n)*unknown fill 'red'(.|\\n)*severity must be in 0.25 to 2"
    fails("options: 4 problem(.|\\n)*unknown partition 'hexagons'(.|\\n)*" + listed, *several)
    fails("fold 2 alone has no threshold", "--folds", "2", "--policies", "random")
    fails("folds 0 to 2, not", "--folds", "2-5", "--policies", "random")
    fails("fixed mask is found on people for training", "--policies", "fixed")
    with pytest.raises(SystemExit, match="no folder of faces at"):
        policies.main(["--data", str(tmp_path / "no"), "--recognizer", weights, "--folds", "1-2"])
    # Whatever cannot be used is told in one list, and the rest is judged.
    copy = tmp_path / "copy"
    (copy / "images").mkdir(parents=True)
    for person in (folder / "images").iterdir():
        (copy / "images" / person.name).symlink_to(person)
    (copy / "images" / "p10").unlink()
    text = (folder / "pairs.txt").read_text().replace("p12\t1\t2", "p12\t1\t7")
    (copy / "pairs.txt").write_text(text)
    caplog.set_level(logging.WARNING)
    out = ["--output", str(tmp_path), "--samples", "9"]
    policies.main(["--data", str(copy), "--recognizer", weights, "--policies", "keep-all", *out])
    found = json.loads((tmp_path / "policies.json").read_text())
    assert found["pairs"] == 18 - 4
    few = ["--folds", "2-3", "--pairs", "1", "--policies", "keep-all"]
    fails(r"policies\.json is there; replace it with --overwrite", *few, *out)
    policies.main(["--data", str(folder), "--recognizer", weights, *few, *out, "--overwrite"])
    assert json.loads((tmp_path / "policies.json").read_text())["pairs"] == 4
    said = [r.getMessage() for r in caplog.records if "p12_0007" in r.getMessage()]
    assert len(said) == 1
    assert "p10_0001" in said[0]
