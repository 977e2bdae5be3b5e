"""Losses for label maps whose classes differ a thousandfold in size."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy + 1 - mean soft Dice over the classes present in the batch.

    Dice counts a class by overlap and not by area, so an eye weighs as much as the hair
    (Milletari et al. 2016). `logits` (N, C, H, W) float, `labels` (N, H, W) int64.
    """
    log_probability = logits.log_softmax(1)
    per_pixel = F.nll_loss(log_probability, labels, reduction="none")
    flat, zero = labels.flatten(), logits.new_zeros(logits.shape[1])
    # The probability of the true class is at hand: no one-hot target is built.
    overlap = zero.index_add(0, flat, per_pixel.neg().exp().flatten())
    area = zero.index_add(0, flat, torch.ones_like(flat, dtype=logits.dtype))
    claimed = log_probability.exp().sum((0, 2, 3))
    dice = 2 * overlap / (claimed + area).clamp_min(1)
    return per_pixel.mean() + 1 - dice[area > 0].mean()


def lovasz_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the Lovász-softmax loss over the classes present in the batch.

    A convex surrogate of the mean IoU (Berman et al. 2018). Shapes as in
    `cross_entropy_dice_loss`.
    """
    probability = logits.softmax(1).movedim(1, -1).reshape(-1, logits.shape[1])
    labels = labels.reshape(-1)
    losses = []
    for label in labels.unique().tolist():
        truth = (labels == label).to(probability.dtype)
        errors, order = (truth - probability[:, label]).abs().sort(descending=True)
        truth = truth[order]
        total = truth.sum()
        jaccard = 1 - (total - truth.cumsum(0)) / (total + (1 - truth).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
        losses.append((errors * jaccard).sum())
    return sum(losses[1:], losses[0]) / len(losses)
