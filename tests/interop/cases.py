"""Thousands of records that both sides of the MXNet test make for themselves, from the seed alone.

Standard library only: MXNet's environment imports this file too.
"""

import random
import struct

MAGIC = struct.pack("<I", 0xCED7230A)
COUNT = 4000


def cases():
    """Yield `(key, labels, id2, payload)`; `labels` is a float, or a list of floats."""
    rng = random.Random(20240117)
    keys = list(range(COUNT))
    rng.shuffle(keys)
    for key in keys:
        form = rng.randrange(4)
        if form == 0:
            labels = float(rng.randrange(1 << 24))
        elif form == 1:
            labels = [float(rng.randrange(100_000)), float(rng.randrange(2))]
        elif form == 2:
            labels = [rng.randrange(-512, 512) / 8 for _ in range(rng.randrange(1, 20))]
        else:
            labels = float(rng.randrange(1000))
        payload = bytearray(rng.getrandbits(8) for _ in range(rng.randrange(120)))
        for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
            # At any position: only those at multiples of 4 of the record may be cut out.
            payload[(at := rng.randrange(len(payload) + 1)) : at] = MAGIC
        if rng.randrange(8) == 0:
            payload = bytearray(MAGIC * rng.randrange(1, 6)) + payload
        id2 = struct.unpack("<Q", MAGIC + MAGIC)[0] if rng.randrange(16) == 0 else key * 3
        yield key, labels, id2, bytes(payload)
