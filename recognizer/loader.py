"""One way to load any recognizer: by name, or from a file recognised by its contents."""

import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recognizer.backbones import BACKBONES, build_backbone
from recognizer.backbones.resnet29 import find_weights, read_weights
from recognizer.checkpoint import honest_tensors, input_spec, read_checkpoint
from recognizer.heads import HEADS, MarginHead, build_head
from recognizer.recognizer import InputSpec, Recognizer, resolve_device

WEIGHTS = Path(__file__).parent / "weights"
_log = logging.getLogger(__name__)

# What the published weights of each family were trained on; everything not named here is 112x112
# BGR, (x - 127.5) / 127.5, which is AdaFace's convention.
_ARCFACE_TORCH = InputSpec(rgb=True)
INPUTS = {
    "iresnet18": _ARCFACE_TORCH,
    "iresnet34": _ARCFACE_TORCH,
    "iresnet50": _ARCFACE_TORCH,
    "iresnet100": _ARCFACE_TORCH,
    "mobilefacenet": _ARCFACE_TORCH,
    "resnet29": InputSpec(
        size=150, rgb=True, mean=(122.782, 117.001, 104.298), std=(256.0, 256.0, 256.0)
    ),
}


def recognizer_names() -> list[str]:
    """Names that `load_recognizer` knows: `resnet29` and the recognizers shipped here."""
    return ["resnet29", *sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))]


def load_recognizer(name_or_path: str | Path, device: str | torch.device = "auto") -> Recognizer:
    """Load a recognizer in evaluation mode.

    Understands our safetensors, AdaFace `.ckpt`, arcface_torch `.pt`/`.pth` and dlib's `.dat`,
    told apart by their contents: keys and shapes choose architecture and depth, and with them
    colour order, size and normalisation. `info` of the result says what was chosen.

    Args:
        name_or_path: `resnet29` (needs the PyPI package `face_recognition_models`), the name of a
            recognizer shipped with the package (`recognizer_names`), or a file.
        device: `"auto"` is CUDA when there is one, else the CPU.

    Raises:
        FileNotFoundError: Neither a known name nor a file, or the PyPI package is missing.
        ValueError: Damaged file, more than weights in it, or keys of no known architecture; says
            which architecture is closest and how the file differs from it.
    """
    if name_or_path == "resnet29":
        recognizer = _assemble("resnet29", read_weights(find_weights()), find_weights())
        source = "PyPI package face_recognition_models"
    else:
        path = _resolve(name_or_path)
        recognizer, source = _load_file(path), path.name
    spec, head = recognizer.spec, recognizer.head
    recognizer.info = {
        "source": source,
        **recognizer.info,
        "architecture": recognizer.name,
        "input": f"{spec.size}x{spec.size} {'RGB' if spec.rgb else 'BGR'}, "
        f"(x - {_numbers(spec.mean)}) / {_numbers(spec.std)}",
        "head": f"{head.kind}, {len(head.weight)} classes" if head else "none",
    }
    _log.info("%s: %s", name_or_path, "; ".join(f"{k} {v}" for k, v in recognizer.info.items()))
    return recognizer.to(resolve_device(device)).eval()


def _resolve(name_or_path: str | Path) -> Path:
    shipped = WEIGHTS / f"{name_or_path}.safetensors"
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    if str(name_or_path) in recognizer_names() and shipped.is_file():
        return shipped
    raise FileNotFoundError(
        f"no recognizer {str(name_or_path)!r}: not a file, and the known names are "
        f"{', '.join(recognizer_names())}"
    )


def _load_file(path: Path) -> Recognizer:
    contents, metadata = read_checkpoint(path)
    if metadata:
        return _load_ours(contents, metadata, path)
    backbone, tensors, layout = _split(contents, path)
    name = _identify(backbone, path)
    head = _adaface_head(tensors, contents.get("hyper_parameters"), path)
    recognizer = _assemble(name, backbone, path, head=head)
    recognizer.info = {"format": layout}
    return recognizer


def _load_ours(state: dict[str, Tensor], metadata: dict[str, Any], path: Path) -> Recognizer:
    name, described = metadata.get("architecture"), metadata.get("head")
    if name not in BACKBONES:
        raise ValueError(f"{path}: unknown architecture {name!r}; there are {', '.join(BACKBONES)}")
    backbone = _strip(state, "backbone.")
    wrong = _compare(backbone, _shapes(name))
    if wrong.count:
        raise ValueError(f"{path}: does not hold the {name} it claims to: {wrong}")
    head = None
    if described is not None:
        if not isinstance(described, dict) or described.get("kind") not in HEADS:
            raise ValueError(f"{path}: unusable head {described!r}; kinds are {', '.join(HEADS)}")
        hyper = {key: value for key, value in described.items() if key != "kind"}
        head = _build_head(described["kind"], _strip(state, "head."), hyper, path)
    info = metadata.get("info")
    spec = input_spec(metadata.get("input"), path)
    recognizer = _assemble(name, backbone, path, spec, head)
    recognizer.info = {str(k): str(v) for k, v in info.items()} if isinstance(info, dict) else {}
    return recognizer


def _assemble(
    name: str,
    state: dict[str, Tensor],
    path: Path,
    spec: InputSpec | None = None,
    head: MarginHead | None = None,
) -> Recognizer:
    spec = spec or INPUTS.get(name, InputSpec())
    with torch.device("meta"):  # no memory or time for weights that are replaced at once
        backbone = build_backbone(name).eval()
        try:
            out = backbone(torch.empty(1, 3, spec.size, spec.size))
        except RuntimeError as error:
            raise ValueError(f"{path}: {name} takes no {spec.size}x{spec.size} images") from error
    dim = (out[0] if isinstance(out, tuple) else out).shape[1]
    if head is not None and head.weight.shape[1] != dim:
        raise ValueError(
            f"{path}: class weights of length {head.weight.shape[1]} for embeddings of {dim}"
        )
    for key, value in backbone.state_dict().items():
        if key not in state:  # by now, only batch counters can be absent
            state[key] = torch.zeros(value.shape)
        state[key] = state[key].to(value.dtype)
    backbone.load_state_dict(state, assign=True)
    return Recognizer(backbone, spec, head, name)


def _split(
    contents: Mapping[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Backbone tensors, head tensors and layout of what public code writes."""
    layout = "bare state dict"
    for key, name in (
        ("state_dict", "Lightning checkpoint"),  # AdaFace
        ("state_dict_backbone", "arcface_torch training checkpoint"),
    ):
        if isinstance(contents.get(key), Mapping):
            contents, layout = contents[key], name
    state = honest_tensors({str(key): value for key, value in contents.items()}, path)
    head = _strip(state, "head.")
    for prefix in ("module.", "model.", "backbone.", "net."):
        state = _strip(state, prefix) or state
    return state, head, layout


def _numbers(values: tuple[float, float, float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{v:g}' for v in values)})"


def _strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)}


@functools.cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build_backbone(name).state_dict().items()}


@dataclass
class _Difference:
    """How a state dict differs from an architecture's."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": self.misshapen,
        }
        return "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for kind, keys in kinds.items()
            if keys
        )


def _compare(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> _Difference:
    return _Difference(
        # Files written before PyTorch 0.4.1 have no batch counters.
        [k for k in shapes if k not in state and not k.endswith("num_batches_tracked")],
        [k for k in state if k not in shapes],
        [
            f"{k} {tuple(state[k].shape)} instead of {shape}"
            for k, shape in shapes.items()
            if k in state and tuple(state[k].shape) != shape
        ],
    )


def _identify(state: Mapping[str, Tensor], path: Path) -> str:
    differences = {name: _compare(state, _shapes(name)) for name in BACKBONES}
    closest = min(differences, key=lambda name: differences[name].count)
    if differences[closest].count:
        raise ValueError(
            f"{path}: its {len(state)} tensors fit none of {', '.join(BACKBONES)}; "
            f"the closest is {closest}: {differences[closest]}"
        )
    return closest


def _adaface_head(state: dict[str, Tensor], hyper: Any, path: Path) -> MarginHead | None:
    """The class weights of an AdaFace checkpoint: `head.kernel`, `(512, classes)`."""
    if "kernel" not in state:
        return None
    hyper = hyper if isinstance(hyper, Mapping) else {}
    kind = hyper.get("head")
    if kind not in HEADS:
        kind = "adaface" if "batch_mean" in state else "cosface"
    tensors = {"weight": state["kernel"].T}
    if kind == "adaface":
        tensors["norm_mean"] = state.get("batch_mean", torch.tensor(20.0)).reshape(())
        tensors["norm_std"] = state.get("batch_std", torch.tensor(100.0)).reshape(())
    known = ("s", "m", "h", "t_alpha") if kind == "adaface" else ("s", "m")
    return _build_head(kind, tensors, {k: hyper[k] for k in known if k in hyper}, path)


def _build_head(
    kind: str, state: dict[str, Tensor], hyper: Mapping[str, Any], path: Path
) -> MarginHead:
    weight = state.get("weight")
    if weight is None or weight.ndim != 2:
        raise ValueError(f"{path}: the {kind} head has no (classes, dim) weight")
    try:
        numbers = {key: float(value) for key, value in hyper.items()}
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError("not finite")
        with torch.device("meta"):
            head = build_head(kind, weight.shape[1], weight.shape[0], **numbers)
        floats = {key: value.to(torch.float32).contiguous() for key, value in state.items()}
        head.load_state_dict(floats, assign=True)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: unusable {kind} head ({dict(hyper)}): {error}") from None
    return head
