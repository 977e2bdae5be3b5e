"""Training of the light parser: deterministic, resumable, logged."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from segmenter.augment import augment
from segmenter.data import ParsingData, load_data, split_names
from segmenter.labels import CLASSES
from segmenter.losses import cross_entropy_dice_loss, lovasz_loss
from segmenter.metrics import confusion, iou_report
from segmenter.networks.light import LightParser
from segmenter.parser import read_weights
from segmenter.render import contact_sheet

_FREE = ("output", "resume", "device", "workers")  # may differ between a run and its resumption


@dataclass
class SegmenterTraining:
    """Options of a training run.

    Args:
        data: Folder with `images/` and `masks/`, or the original CelebAMask-HQ folder.
        output: Run folder; must not hold a run already unless `resume` is set.
        resume: Continue the run in `output` from its last finished epoch; the other options must
            be those it was started with.
        init: Weights of a light parser to start from (.safetensors), for fine-tuning.
        epochs: Passes over the training part.
        batch: Faces per step.
        size: Side of the square training views, and of the network's input afterwards; a multiple
            of 16.
        lr: Peak learning rate of AdamW; warmed up over 3 % of the steps, then a cosine to zero.
        weight_decay: Decoupled weight decay.
        loss: Added to cross-entropy: nothing, soft Dice, or Lovász-softmax.
        aligned: Share of views that stay near the face's own place; the others are cropped, turned
            and shifted widely.
        precision: `bf16` computes the network's training passes in bfloat16, which a processor with
            such instructions does nearly twice as fast; weights and evaluation stay `fp32`.
        ema: Decay of the running average of the weights, which is what is validated and saved.
        test: Share of the faces that training never looks at.
        validation: Share of the faces on which the best epoch is chosen.
        seed: Seeds the weights, the views and the split.
        workers: Processes that prepare views; 0 prepares them in the training process.
        device: `auto` takes CUDA when there is one.
    """

    data: str
    output: str = "runs/segmenter"
    resume: bool = False
    init: str | None = None
    epochs: int = 100
    batch: int = 16
    size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.02
    loss: Literal["ce", "ce+dice", "ce+lovasz"] = "ce+dice"
    aligned: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float = 0.998
    test: float = 0.15
    validation: float = 0.10
    seed: int = 0
    workers: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.size % 16 or self.size < 32:
            raise ValueError(f"size must be a multiple of 16 and at least 32, got {self.size}")
        if self.epochs < 1 or self.batch < 2:
            raise ValueError("epochs must be at least 1 and batch at least 2")
        if not 0 <= self.aligned <= 1:
            raise ValueError(f"aligned is a share from 0 to 1, got {self.aligned}")


class Views(Dataset):
    """Random views of faces, a pure function of `(epoch, position, face)` and the seed."""

    def __init__(self, data: ParsingData, size: int, seed: int, aligned: float = 0.0) -> None:
        self.data, self.size, self.seed, self.aligned = data, size, seed, aligned

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        epoch, position, index = key
        rng = np.random.default_rng((self.seed, epoch, position))
        data = self.data
        other = data.images[rng.integers(len(data))]
        face = data.images[index], data.masks[index]
        image, mask = augment(*face, other, self.size, rng, self.aligned)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)


def train(options: SegmenterTraining) -> dict:
    """Train a parser, leaving `best.safetensors`, its test report and the logs in the run folder.

    Returns the report of the best epoch's weights on the test part (see `iou_report`). Raises
    `FileExistsError` when the folder holds a run and `resume` is off, `ValueError` when a resumed
    run was started with other options, and what `load_data` raises about bad files.
    """
    folder = _check_folder(options)
    device = torch.device(_auto(options.device))
    data = load_data(options.data)
    parts = split_names(data.names, options.test, options.validation, options.seed)
    if min(map(len, parts.values())) == 0:
        raise ValueError(f"{options.data}: {len(data)} faces are too few for three parts")
    folder.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        _write(folder / "config.json", asdict(options))
    _write(folder / "split.json", {k: [data.names[i] for i in v] for k, v in parts.items()})
    split = {name: data.subset(index) for name, index in parts.items()}

    torch.manual_seed(options.seed)
    model = LightParser().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.init:
        _load_light(model, Path(options.init))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema), use_buffers=True)
    optimizer = torch.optim.AdamW(_groups(model, options.weight_decay), lr=options.lr)
    start, best = 0, 0.0
    if (folder / "last.safetensors").is_file():  # absent when a kill came in the first epoch
        start, best = _load_state(folder / "last.safetensors", model, average, optimizer)
    _drop_lines_after(folder / "metrics.jsonl", start)

    faces = len(split["train"])
    steps = math.ceil(faces / options.batch)
    with SummaryWriter(str(folder / "tensorboard"), purge_step=start) as writer:
        bar = tqdm(range(start, options.epochs), "training", unit="epoch")
        for epoch in bar:
            losses = []
            for step, (images, masks) in enumerate(_batches(split["train"], options, epoch)):
                for group in optimizer.param_groups:
                    group["lr"] = options.lr * _schedule(
                        (epoch * steps + step) / (options.epochs * steps)
                    )
                losses.append(_step(model, optimizer, images, masks, options, device))
                average.update_parameters(model)
                bar.set_postfix(loss=f"{losses[-1]:.3f}", step=f"{step + 1}/{steps}", best=best)
            report, predicted = evaluate(average.module, split["validation"], options.size)
            record = {"epoch": epoch, "loss": float(np.mean(losses)), **report}
            if report["mean_iou_common"] > best:
                best = round(report["mean_iou_common"], 4)
                save_parser(average.module, folder / "best.safetensors", options.size)
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
            _log(writer, record, split["validation"], predicted, epoch)
            _save_state(folder / "last.safetensors", model, average, optimizer, epoch + 1, best)
    return _final_report(folder, split["test"], options.size, device)


@torch.inference_mode()
def evaluate(model: torch.nn.Module, data: ParsingData, size: int) -> tuple[dict, Tensor]:
    """Return the IoU report of a light network on whole faces and its label maps.

    Faces are resized to `size` for the network and judged at their stored size.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    counts = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    maps = []
    for start in range(0, len(data), 16):
        images = torch.from_numpy(data.images[start : start + 16]).permute(0, 3, 1, 2)
        x = F.interpolate(images.to(device).float(), (size, size), mode="bilinear", antialias=True)
        logits = model(_normalise(x))
        full = F.interpolate(logits, images.shape[2:], mode="bilinear")
        maps.append(full.max(1).indices.to("cpu", torch.uint8))  # several times faster than argmax
        counts += confusion(maps[-1], torch.from_numpy(data.masks[start : start + 16]))
    model.train(was_training)
    return iou_report(counts), torch.cat(maps)


def save_parser(model: torch.nn.Module, path: Path, size: int) -> None:
    """Write a light parser as safetensors with what is needed to load it in the header."""
    header = {"format": "sarface-parser", "network": "light", "size": str(size)}
    _save(model.state_dict(), path, header)


def _batches(
    data: ParsingData, options: SegmenterTraining, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng((options.seed, epoch))
    weights = _repeat_factors(data.masks)
    order = rng.choice(len(data), len(data), p=weights / weights.sum())
    if len(order) % options.batch == 1:  # batch normalisation needs two
        order = order[:-1]
    keys = [(epoch, position, int(index)) for position, index in enumerate(order)]
    views = Views(data, options.size, options.seed, options.aligned)
    loader: DataLoader = DataLoader(views, options.batch, sampler=keys, num_workers=options.workers)
    return iter(loader)


def _repeat_factors(masks: np.ndarray, threshold: float = 0.3) -> np.ndarray:
    """Weights that show faces with rare classes more often (Gupta et al. 2019, LVIS)."""
    held = np.stack([np.bincount(m.ravel(), minlength=len(CLASSES)) > 0 for m in masks])
    share = held.mean(0).clip(1 / len(masks))
    factor = np.sqrt(threshold / share).clip(1)
    return np.where(held, factor, 1).max(1)


def _step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    masks: Tensor,
    options: SegmenterTraining,
    device: torch.device,
) -> float:
    model.train()
    x = _normalise(images.to(device).float())
    labels = masks.to(device).long()
    with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        logits = model(x)
    logits = logits.float()
    if options.loss == "ce+dice":
        loss = cross_entropy_dice_loss(logits, labels)
    else:
        loss = F.cross_entropy(logits, labels)
        if options.loss == "ce+lovasz":
            loss = loss + lovasz_loss(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return float(loss.detach())


def _normalise(images: Tensor) -> Tensor:
    return (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _schedule(progress: float, warmup: float = 0.03) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _log(
    writer: SummaryWriter, record: dict, data: ParsingData, predicted: Tensor, epoch: int
) -> None:
    for name in ("loss", "mean_iou", "mean_iou_common", "fw_iou"):
        writer.add_scalar(
            f"validation/{name}" if name != "loss" else "train/loss", record[name], epoch
        )
    for name, value in record["iou"].items():
        if value is not None:
            writer.add_scalar(f"iou/{name}", value, epoch)
    if epoch % 5 == 0:
        shown = slice(0, 8)
        images = torch.from_numpy(data.images[shown]).permute(0, 3, 1, 2)
        sheet = contact_sheet(images, [torch.from_numpy(data.masks[shown]), predicted[shown]], 8)
        writer.add_image(
            "validation/image-truth-prediction", sheet[..., ::-1], epoch, dataformats="HWC"
        )


def _final_report(folder: Path, data: ParsingData, size: int, device: torch.device) -> dict:
    model = LightParser().to(device)
    _load_light(model, folder / "best.safetensors")
    report, predicted = evaluate(model, data, size)
    _write(folder / "test.json", report)
    shown = slice(0, 24)
    images = torch.from_numpy(data.images[shown]).permute(0, 3, 1, 2)
    sheet = contact_sheet(images, [torch.from_numpy(data.masks[shown]), predicted[shown]], 12)
    cv2.imwrite(str(folder / "test.png"), sheet)
    return report


def _check_folder(options: SegmenterTraining) -> Path:
    folder = Path(options.output)
    saved, state = folder / "config.json", folder / "last.safetensors"
    if options.resume:
        if not saved.is_file():
            raise FileNotFoundError(f"{folder}: no run to resume")
        old, new = json.loads(saved.read_text()), asdict(options)
        changed = [k for k in new if k not in _FREE and old.get(k) != new[k]]
        if changed:
            what = ", ".join(f"{k} was {old.get(k)}, now {new[k]}" for k in changed)
            raise ValueError(f"{folder}: a resumed run keeps its options, but {what}")
        return folder
    if state.exists():
        raise FileExistsError(f"{folder} holds a run: pass --resume true or another --output")
    return folder


def _load_light(model: LightParser, path: Path) -> None:
    try:
        model.load_state_dict(read_weights(path)[0])
    except RuntimeError as error:
        raise ValueError(f"{path}: not weights of the light parser ({error})") from None


def _save_state(
    path: Path,
    model: torch.nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    best: float,
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    _save(tensors, path, {"epoch": str(epoch), "best": repr(best)})


def _load_state(
    path: Path, model: torch.nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part("model."))
    average.load_state_dict(part("average."))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in part("optimizer.").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(header["epoch"]), float(header["best"])


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write safetensors so that a kill leaves either the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, header)
    os.replace(partial, path)


def _write(path: Path, value: dict) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)


def _drop_lines_after(path: Path, epoch: int) -> None:
    """Forget logged epochs that a resumed run will repeat, and a line that a kill cut short."""
    if path.is_file():
        kept = path.read_text().splitlines(keepends=True)[:epoch]  # one line an epoch
        path.write_text("".join(kept))


def _auto(device: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
