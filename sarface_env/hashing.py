"""A hash for arrays of numbers."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: multiples of it are spread evenly in their upper bits."""


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al., 2014): uint64 to well-mixed uint64, elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
