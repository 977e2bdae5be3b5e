"""Region dropout: practice for a recognizer that will be shown faces with regions missing."""

from torch import Tensor

from sarface_env.fills import make_fill
from sarface_env.partitions import Partition


def random_masks(uniform: Tensor, probability: float, most: float) -> Tensor:
    """Keep bits `(N, K)` that drop random regions of random faces.

    Args:
        uniform: random numbers in [0, 1), `(N, 2 + K)`.
        probability: of a face losing any.
        most: every region of such a face is dropped with a probability drawn from [0, `most`].
    """
    chosen, share, draws = uniform[:, :1], uniform[:, 1:2], uniform[:, 2:]
    return (chosen >= probability) | (draws >= most * share)


class RegionDropout:
    """Drops random selectable regions of some of the faces of a training batch.

    Of a face that is chosen, every selectable region is dropped with a probability drawn for that
    face from [0, `most`], so that light and heavy masks both occur.

    Args:
        partition: cuts parsing maps into regions.
        probability: of a face being chosen.
        mean_colour: BGR in 0-255, in place of dropped pixels.
        most: largest share of the regions that is dropped on average.
    """

    def __init__(
        self,
        partition: Partition,
        probability: float,
        mean_colour: tuple[float, float, float],
        most: float = 0.5,
    ):
        self.partition, self.probability = partition, probability
        self.mean_colour, self.most = mean_colour, most
        self.columns = 2 + len(partition.selectable)
        self._fill = make_fill("mean")

    def __call__(self, images: Tensor, parsing: Tensor, uniform: Tensor) -> Tensor:
        """Images `(N, 3, H, W)` uint8 with regions of their parsing `(N, H, W)` filled.

        Args:
            images: uint8 BGR.
            parsing: uint8 face-parsing maps.
            uniform: random numbers in [0, 1), `(N, columns)`.
        """
        masks = random_masks(uniform, self.probability, self.most)
        keep = self.partition.keep_bytes(self.partition(parsing), masks.cpu().numpy())
        return self._fill(images.clone(), keep, self.mean_colour)
