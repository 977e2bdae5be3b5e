"""Weights in files: our safetensors, and other people's checkpoints read without trusting them."""

import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recognizer.backbones.resnet29 import read_weights
from recognizer.recognizer import InputSpec, Recognizer

METADATA_KEY = "sarface_recognizer"


class _Inert:
    """Stands in for a class that a checkpoint names but whose data nobody reads."""


# Lightning before 1.5 keys the state of callbacks by their class; it comes before the weights.
_INERT = tuple(
    (_Inert, f"pytorch_lightning.callbacks.{name}")
    for name in (
        "model_checkpoint.ModelCheckpoint",
        "lr_monitor.LearningRateMonitor",
        "early_stopping.EarlyStopping",
    )
)


def save_recognizer(recognizer: Recognizer, path: str | Path, overwrite: bool = False) -> None:
    """Write weights and everything needed to rebuild the recognizer to one safetensors file.

    The header's metadata holds, as JSON under `sarface_recognizer`, the architecture, the input it
    wants, the head's kind and hyper-parameters, and `info`. The file appears whole or not at all.

    Raises:
        FileExistsError: `path` exists and `overwrite` is not set.
        ValueError: The recognizer does not know its architecture's name.
    """
    path = Path(path)
    if not recognizer.name:
        raise ValueError("cannot save a recognizer without the name of its architecture")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another path or ask to overwrite it")
    head = recognizer.head
    metadata = {
        "architecture": recognizer.name,
        "input": asdict(recognizer.spec),
        "head": None if head is None else {"kind": head.kind, **head.hyperparameters()},
        "info": recognizer.info,
    }
    state = {key: value.detach().contiguous() for key, value in recognizer.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, unfinished, {METADATA_KEY: json.dumps(metadata)})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a file of weights, told by its contents: safetensors, PyTorch, or dlib's ResNet-29.

    Nothing in the file is executed: PyTorch files load with `weights_only=True`.

    Returns:
        The contents (tensors by key; for PyTorch files whatever the file holds) and our metadata,
        empty for foreign files.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, of an unknown kind, or carrying more than weights; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    with path.open("rb") as file:
        start = file.read(18)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if b"loss_metric" in start:
        return dict(read_weights(path)), {}
    return _read_torch(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from None
    try:
        metadata = json.loads(text)
        if not isinstance(metadata, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: metadata {METADATA_KEY!r} is not JSON: {error}") from None
    return state, metadata


def _read_torch(path: Path) -> dict[str, Any]:
    size = claimed = path.stat().st_size
    contents: Any = None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                claimed = sum(item.file_size for item in archive.infolist())
        if claimed <= size:
            with torch.serialization.safe_globals(list(_INERT)):
                contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way it likes
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            raise ValueError(
                f"{path}: refused, because it carries {foreign[1]} and not only weights"
            ) from None
        raise ValueError(
            f"{path}: damaged, or neither a safetensors nor a PyTorch file of weights "
            f"({type(error).__name__})"
        ) from None
    if claimed > size:
        raise ValueError(f"{path}: claims to unpack to {claimed} bytes but has only {size}")
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path}: holds a {type(contents).__name__}, expected a dict of weights")
    return dict(contents)


def honest_tensors(contents: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors among `contents`, dense and on the CPU.

    Raises:
        ValueError: A tensor is larger than the bytes stored for it (a few bytes can claim any
            shape with a stride of zero), or of an exotic kind.
    """
    state = {key: value for key, value in contents.items() if isinstance(value, Tensor)}
    for key, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError(f"{path}: {key!r} is not a plain dense tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {key!r} claims shape {tuple(value.shape)} but stores only "
                f"{value.untyped_storage().nbytes()} bytes"
            )
    return state


def input_spec(values: Any, path: Path) -> InputSpec:
    """`InputSpec` from the metadata's JSON, checked."""
    try:
        spec = InputSpec(
            size=int(values["size"]),
            rgb=bool(values["rgb"]),
            mean=tuple(map(float, values["mean"])),  # type: ignore[arg-type]
            std=tuple(map(float, values["std"])),  # type: ignore[arg-type]
        )
        numbers = (*spec.mean, *spec.std)
        if not 8 <= spec.size <= 1024 or len(spec.mean) != 3 or len(spec.std) != 3:
            raise ValueError("size must be 8 to 1024, mean and std three numbers each")
        if not all(map(math.isfinite, numbers)) or min(spec.std) <= 0:
            raise ValueError("mean must be finite and std positive")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: unusable input description {values!r}: {error}") from None
    return spec
