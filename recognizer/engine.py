"""Inference of a frozen recognizer: the same embeddings as eager evaluation, faster."""

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from recognizer.cuda_graphs import CudaGraphs
from recognizer.memory import keep_freed_memory
from recognizer.recognizer import Recognizer

Precision = Literal["float32", "bfloat16", "float16", "fastest"]

_log = logging.getLogger(__name__)
# So many times slower than float32, even a first lap need not be repeated: processors without half
# precision take 40 times as long.
_HOPELESS = 10


class InferenceEngine:
    """Embeds uint8 BGR images with a frozen copy of a recognizer's weights.

    On a CPU the backbone is traced, its BatchNorms are folded into the convolutions and its
    weights laid out for oneDNN; on CUDA it is replayed as graphs. Where that fails or gives other
    embeddings, the backbone runs as it is, and the log says why. In float32 results agree with
    `Recognizer.embed` to rounding. Later changes of the recognizer's weights are not seen: make a
    new engine.

    Args:
        recognizer: in evaluation mode.
        precision: of the backbone. Half precisions are faster where the hardware has them, and
            embeddings then differ in the third digit. `fastest` measures, once.
    """

    @torch.no_grad()
    def __init__(self, recognizer: Recognizer, precision: Precision = "float32"):
        keep_freed_memory()
        self.recognizer = recognizer
        device = recognizer.device.type
        self.precision = fastest_precision(recognizer) if precision == "fastest" else precision
        self._dtype: torch.dtype = getattr(torch, self.precision)
        # A backbone traced in float32 brings plain tensors into oneDNN's own layout faster.
        self._channels_last = device != "cpu" or self.precision != "float32"
        network = copy.deepcopy(recognizer.backbone).eval().requires_grad_(False)
        noise = self._noise(3)
        expected, _ = _unit(network(recognizer.prepare(noise)))
        network = network.to(self._dtype)
        if self._channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]] = network
        try:
            self._forward = CudaGraphs(network) if device == "cuda" else self._traced(network)
            cosine = (self(noise)[0] * expected).sum(1).min().item()
            if not cosine > (0.9999 if self.precision == "float32" else 0.98):
                raise RuntimeError(
                    f"embeddings of noise have cosine {cosine:.4f} to the right ones"
                )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            _log.warning("%s runs without an inference engine: %s", recognizer.name, reason)
            self._forward = network

    @torch.no_grad()
    def _traced(self, network: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is deprecated in favour of torch.compile
            traced = torch.jit.trace(network, self._input(self._noise(2)), check_trace=False)
            return torch.jit.optimize_for_inference(torch.jit.freeze(traced))

    def _noise(self, n: int) -> Tensor:
        size = (n, 3, self.recognizer.spec.size, self.recognizer.spec.size)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)

    def _input(self, images: Tensor) -> Tensor:
        return self.recognizer.prepare(images, self._channels_last).to(self._dtype)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings `(N, D)` and norms `(N, 1)`, float32, of uint8 BGR images."""
        return _unit(self._forward(self._input(images)))


def _unit(out: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Unit embeddings and norms, float32, of what a backbone gives."""
    if isinstance(out, tuple):
        return out[0].float(), out[1].float()
    out = out.float()
    norm = out.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return out / norm, norm


def fastest_precision(recognizer: Recognizer, batch: int = 16, gain: float = 1.1) -> Precision:
    """The precision that embeds a batch in the least time on the recognizer's device.

    Args:
        recognizer: in evaluation mode.
        batch: images.
        gain: how many times faster than float32 another must be to be chosen.
    """
    half: tuple[Precision, ...] = ("bfloat16",)
    if recognizer.device.type == "cuda":
        half = ("bfloat16", "float16") if torch.cuda.is_bf16_supported() else ("float16",)
    seconds: dict[Precision, float] = {}
    for precision in ("float32", *half):
        engine = InferenceEngine(recognizer, precision)
        images = engine._noise(batch)
        laps = []
        for _ in range(4):
            start = time.perf_counter()
            engine(images)[0].cpu()  # waits for CUDA
            laps.append(time.perf_counter() - start)
            if laps[-1] > _HOPELESS * seconds.get("float32", math.inf):
                break
        seconds[precision] = min(laps[1:] or laps)
    best = min(half, key=seconds.__getitem__)
    chosen: Precision = best if gain * seconds[best] < seconds["float32"] else "float32"
    table = ", ".join(f"{name} {1e3 * s / batch:.2f} ms" for name, s in seconds.items())
    _log.info("%s computes in %s (an image: %s)", recognizer.name, chosen, table)
    return chosen
