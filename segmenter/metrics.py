"""Agreement of label maps, from one confusion matrix."""

import numpy as np
import torch
from torch import Tensor

from segmenter.labels import CLASSES, RARE_CLASSES


def confusion(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the int64 (19, 19) counts of pixels by [true class, predicted class]."""
    n = len(CLASSES)
    pairs = truth.long().flatten() * n + predicted.long().flatten()
    return torch.bincount(pairs, minlength=n * n).view(n, n)


def iou_report(counts: Tensor) -> dict:
    """Return IoU per class, its means, and pixel accuracy, from a confusion matrix.

    A class that neither the truth nor the prediction holds has IoU None and enters no mean.
    `mean_iou` is over the classes present in the truth, `mean_iou_common` over those of them that
    are not rare (hat, earring, necklace); `fw_iou` weighs each class by its share of true pixels.
    """
    counts_ = counts.double().cpu().numpy()
    truth, predicted, overlap = counts_.sum(1), counts_.sum(0), counts_.diagonal()
    union = truth + predicted - overlap
    iou = np.divide(overlap, union, out=np.full(len(CLASSES), np.nan), where=union > 0)
    present = truth > 0
    common = present & np.array([name not in RARE_CLASSES for name in CLASSES])
    return {
        "mean_iou": float(iou[present].mean()) if present.any() else 0.0,
        "mean_iou_common": float(iou[common].mean()) if common.any() else 0.0,
        "fw_iou": float((iou[present] * truth[present]).sum() / max(truth.sum(), 1.0)),
        "pixel_accuracy": float(overlap.sum() / max(truth.sum(), 1.0)),
        "iou": {n: None if np.isnan(v) else float(v) for n, v in zip(CLASSES, iou, strict=True)},
    }
