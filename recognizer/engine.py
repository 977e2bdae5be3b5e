"""Inference of a frozen recognizer: the same embeddings as eager evaluation, faster."""

import copy
import warnings

import torch
from torch import Tensor, nn

from recognizer.memory import keep_freed_memory
from recognizer.recognizer import Recognizer


class InferenceEngine:
    """Embeds uint8 BGR images with a frozen copy of a recognizer's weights.

    On a CPU the backbone is traced, its BatchNorms are folded into the convolutions and its
    weights laid out for oneDNN; on CUDA it stays eager. Results agree with `Recognizer.embed` to
    float32 rounding. Later changes of the recognizer's weights are not seen: make a new engine.
    """

    def __init__(self, recognizer: Recognizer):
        self.recognizer = recognizer
        self.backbone: nn.Module = recognizer.backbone
        self.traced = recognizer.device.type == "cpu"
        if self.traced:
            keep_freed_memory()
            self.backbone = self._freeze(recognizer)

    @staticmethod
    @torch.no_grad()
    def _freeze(recognizer: Recognizer) -> nn.Module:
        backbone = copy.deepcopy(recognizer.backbone).eval()
        example = torch.zeros(2, 3, recognizer.spec.size, recognizer.spec.size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is deprecated in favour of torch.compile
            traced = torch.jit.freeze(torch.jit.trace(backbone, example, check_trace=False))
            return torch.jit.optimize_for_inference(traced)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings `(N, D)` and norms `(N, 1)` of uint8 BGR images `(N, 3, H, W)`."""
        # A traced backbone brings plain tensors into oneDNN's own layout faster than others.
        out = self.backbone(self.recognizer.prepare(images, channels_last=not self.traced))
        if isinstance(out, tuple):
            return out
        norm = out.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return out / norm, norm
