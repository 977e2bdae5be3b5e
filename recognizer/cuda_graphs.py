"""CUDA graphs of a network for batches of any size."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Output = Tensor | tuple[Tensor, Tensor]


class CudaGraphs:
    """Records a network once for every power of two of images, and replays it.

    A replay launches all kernels at once; launching them one by one costs more than small batches
    take to compute. Batches are filled up to the next power of two, larger ones than `largest` run
    as they are.

    Args:
        network: in evaluation mode, with outputs that are rows for images.
        record: makes the replayable form of the network for an input of fixed shape; for tests.
        largest: batch that is recorded.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Output],
        record: Callable[[Callable[[Tensor], Output], Tensor], Callable[[], Output]] | None = None,
        largest: int = 512,
    ):
        self.network, self.largest = network, largest
        self._record = _record if record is None else record
        self._recorded: dict[int, tuple[Tensor, Callable[[], Output]]] = {}

    def __call__(self, x: Tensor) -> Output:
        """What the network gives for float images `(N, 3, S, S)`."""
        n = len(x)
        size = 1 << (n - 1).bit_length() if n else 0
        if not 0 < size <= self.largest:
            return self.network(x)
        if size not in self._recorded:
            static = torch.zeros_like(x[:1].expand(size, *x.shape[1:]))
            static = static.to(memory_format=torch.channels_last)
            self._recorded[size] = static, self._record(self.network, static)
        static, replay = self._recorded[size]
        static[:n].copy_(x)
        out = replay()
        # Copies: the next replay writes to the same memory.
        if isinstance(out, tuple):
            return out[0][:n].clone(), out[1][:n].clone()
        return out[:n].clone()


def _record(network: Callable[[Tensor], Output], static: Tensor) -> Callable[[], Output]:
    stream: Any = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # choose algorithms and allocate before the recording
        for _ in range(3):
            network(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = network(static)

    def replay() -> Output:
        graph.replay()
        return out

    return replay
