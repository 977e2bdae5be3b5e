"""MXNet's side of `benchmarks.recordio`: runs in MXNet's own environment, told what to do by lines.

Reads JSON lines `{"work": "unpack" | "decode", "keys": [...]}` and answers each with the seconds.
"""

import json
import sys
import time

import mxnet as mx
import numpy as np


def main() -> None:
    """Serve until the input ends."""
    path = sys.argv[1]
    records = mx.recordio.MXIndexedRecordIO(path[: -len(".rec")] + ".idx", path, "r")
    print(json.dumps({"mxnet": mx.__version__, "numpy": np.__version__}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        decode = order["work"] == "decode"
        start = time.perf_counter()
        for key in order["keys"]:
            _, data = mx.recordio.unpack(records.read_idx(key))
            if decode:
                mx.image.imdecode(data).asnumpy()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
