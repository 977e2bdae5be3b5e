"""Region dropout: practice for a recognizer that will be shown faces with regions missing."""

from torch import Tensor

from sarface_env.fills import make_fill
from sarface_env.partitions import Partition


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
        chosen, share, draws = uniform[:, :1], uniform[:, 1:2], uniform[:, 2:]
        masks = (chosen >= self.probability) | (draws >= self.most * share)
        keep = self.partition.keep_bytes(self.partition(parsing), masks)
        return self._fill(images.clone(), keep, self.mean_colour)
