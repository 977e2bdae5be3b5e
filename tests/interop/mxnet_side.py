"""What MXNet itself writes and reads; runs in MXNet's environment, with numpy 1.23."""

import sys
from pathlib import Path

import mxnet as mx
import numpy as np
from cases import cases


def header(key, labels, id2):
    return mx.recordio.IRHeader(0, labels, key, id2)


def write(folder):
    """The cases as `mxnet.rec` and `mxnet.idx`."""
    records = mx.recordio.MXIndexedRecordIO(
        str(folder / "mxnet.idx"), str(folder / "mxnet.rec"), "w"
    )
    for key, labels, id2, payload in cases():
        records.write_idx(key, mx.recordio.pack(header(key, labels, id2), payload))
    records.close()


def read(folder):
    """Compare `ours.rec` with the cases: at random by key, and from front to back."""
    path = folder / "ours.rec"
    by_key = mx.recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "r")
    in_order = mx.recordio.MXRecordIO(str(path), "r")
    everything = list(cases())
    for key, labels, id2, payload in everything:
        record = in_order.read()
        assert record == mx.recordio.pack(header(key, labels, id2), payload), key
    assert in_order.read() is None
    for key, labels, id2, payload in reversed(everything):
        found, data = mx.recordio.unpack(by_key.read_idx(key))
        assert data == payload, key
        assert (found.id, found.id2) == (key, id2), key
        assert found.flag == (0 if isinstance(labels, float) else len(labels)), key
        assert np.array_equal(np.float32(found.label), np.float32(labels)), key
    print(len(everything), "records read")


def faces(path):
    """Read a face set as InsightFace's trainers do and print what its images are."""
    records = mx.recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "r")
    first, data = mx.recordio.unpack(records.read_idx(0))
    assert first.flag == 2
    assert not data
    for key in range(1, int(first.label[0])):
        head, data = mx.recordio.unpack(records.read_idx(key))
        label = head.label if head.flag == 0 else head.label[0]
        image = mx.image.imdecode(data).asnumpy()
        print(key, int(label), len(data), *image.shape[:2], int(image[..., 2].sum()), sep="\t")
    for key in range(int(first.label[0]), int(first.label[1])):
        head, data = mx.recordio.unpack(records.read_idx(key))
        assert not data
        print("identity", *(int(value) for value in head.label), sep="\t")


if __name__ == "__main__":
    {"write": write, "read": read, "faces": faces}[sys.argv[1]](Path(sys.argv[2]))
