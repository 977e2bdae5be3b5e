"""What training starts from: the network, its head and the first class weights, the optimizer."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from recognizer.backbones import build_backbone
from recognizer.data.training_set import TrainingSet
from recognizer.heads import AdaFace, MarginHead, build_head
from recognizer.loader import INPUTS, load_recognizer
from recognizer.recognizer import InputSpec, Recognizer
from recognizer.training_options import TrainOptions


def learning_rate(options: TrainOptions, step: int, epoch_steps: int) -> float:
    """Learning rate of the update that follows `step` updates."""
    rate = options.lr * min(1.0, (step + 1) / options.warmup) if options.warmup else options.lr
    if options.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * step / (epoch_steps * options.epochs))) / 2
    return rate * options.gamma ** sum(step >= m * epoch_steps for m in options.milestones)


def build_recognizer(options: TrainOptions) -> Recognizer:
    """The network to train: `init`, or a fresh `backbone` with the input of its published kind."""
    if options.init:
        recognizer = load_recognizer(options.init)
        recognizer.info = {"initialised from": options.init}
    else:
        spec = INPUTS.get(options.backbone, InputSpec())
        recognizer = Recognizer(build_backbone(options.backbone), spec, name=options.backbone)
    recognizer.info["trained on"] = Path(options.data).name
    return recognizer


def add_head(
    recognizer: Recognizer, options: TrainOptions, data: TrainingSet, enrol: bool = True
) -> None:
    """Give the network the head of the options for the classes of the data.

    Args:
        recognizer: keeps a head it has only with `init_head` keep.
        options: `init_head`, `head` and what belongs to it.
        data: gives the number of classes, and the faces to enrol.
        enrol: whether enrolment is worth its time; not when weights are loaded afterwards.
    """
    previous, names = recognizer.head, ["s", *(["h", "t_alpha"] * (options.head == "adaface"))]
    hyper = {name: getattr(options, name) for name in names}
    if options.m is not None:
        hyper["m"] = options.m
    head = build_head(options.head, _dimension(recognizer), data.classes, **hyper)
    recognizer.head = head.to(recognizer.device)
    how = options.init_head
    if how == "auto":
        how = "enrol" if options.init else "random"
    if how == "keep":
        _keep(previous, head, options.init)
    elif how == "enrol" and enrol:
        _enrol(recognizer, head, data)


def _keep(previous: MarginHead | None, head: MarginHead, source: str) -> None:
    shape = None if previous is None else tuple(previous.weight.shape)
    if previous is None or shape != tuple(head.weight.shape):
        raise ValueError(
            f"cannot keep the head of {source}: it has {shape or 'none'}, "
            f"the data needs class weights {tuple(head.weight.shape)}"
        )
    head.load_state_dict(
        previous.state_dict() if previous.kind == head.kind else {"weight": previous.weight},
        strict=False,
    )


@torch.no_grad()
def _enrol(recognizer: Recognizer, head: MarginHead, data: TrainingSet) -> None:
    """Start every class weight at the mean embedding of its images, AdaFace's norms likewise."""
    recognizer.eval()
    sums, norms = torch.zeros_like(head.weight), []
    order = np.arange(len(data.labels))
    chunks = [order[i : i + 128].tolist() for i in range(0, len(order), 128)]
    for chunk in tqdm(chunks, desc="enrolling", unit="batch"):
        images, labels = data[chunk]
        embedding, norm = recognizer.embed(images)
        sums.index_add_(0, labels.to(sums.device), embedding)
        norms.append(norm.flatten())
    seen = sums.norm(dim=1) > 0
    head.weight[seen] = F.normalize(sums[seen], dim=1)
    if isinstance(head, AdaFace):
        head.norm_mean.copy_(torch.cat(norms).mean())
        head.norm_std.copy_(torch.cat(norms).std())


@torch.no_grad()
def _dimension(recognizer: Recognizer) -> int:
    recognizer.eval()
    size = recognizer.spec.size
    empty = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=recognizer.device)
    return recognizer(empty).shape[1]


def build_optimizer(module: Recognizer, options: TrainOptions) -> torch.optim.Optimizer:
    """SGD or AdamW, without weight decay on vectors: biases, BatchNorm, PReLU.

    `lr_scale` of every group is what its learning rate is of that of the run.
    """
    groups: list[dict[str, Any]] = []
    parts = [(module.backbone, options.backbone_lr)]
    parts += [] if module.head is None else [(module.head, 1.0)]
    for part, scale in parts:
        for vectors in (False, True):
            params = [p for p in part.parameters() if (p.ndim <= 1) == vectors]
            decay = 0.0 if vectors else options.weight_decay
            if params:
                groups.append({"params": params, "weight_decay": decay, "lr_scale": scale})
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr)
    return torch.optim.SGD(groups, lr=options.lr, momentum=0.9)
