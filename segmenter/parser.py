"""One interface to every face parser: BGR images in, CelebAMask-HQ labels out."""

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from segmenter.labels import BISENET_TO_CELEBAMASK
from segmenter.networks.bisenet import BiSeNet, zllrunning_key
from segmenter.networks.light import LightParser
from segmenter.networks.swiftformer import SwiftFormerUNet

WEIGHTS = Path(__file__).parent / "weights"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MAX_SIDE = 1024  # of the map on which classes compete; larger pictures get it enlarged


class Parser:
    """A face-parsing network with the conversions it needs.

    Attributes:
        name: What was loaded.
        version: Hash of network and weights; label maps of equal versions agree.
        parameters: Number of weights.
        device: Where it runs.
        network: The network itself, for inference only.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        size: int,
        imagenet: bool,
        remap: Tensor | None = None,
        device: str = "auto",
    ) -> None:
        self.name = name
        self.size = size
        self.device = torch.device(_auto(device))
        self.version = _version(network, size)
        self.parameters = sum(p.numel() for p in network.parameters())
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        mean, std = _IMAGENET if imagenet else ((0.5,) * 3, (0.5,) * 3)
        self._rgb = imagenet
        self._mean = 255 * torch.tensor(mean, device=self.device).view(3, 1, 1)
        self._std = 255 * torch.tensor(std, device=self.device).view(3, 1, 1)
        self._remap = None if remap is None else remap.to(self.device, torch.uint8)

    @torch.inference_mode()
    def parse(self, images: Tensor, batch: int = 32) -> Tensor:
        """Return the label maps, uint8 `(N, H, W)` on the images' device.

        `images` are uint8 BGR `(N, 3, H, W)` of any size; `batch` bounds the memory in use. Raises
        `ValueError` for anything else.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                "images must be uint8 BGR (N, 3, H, W), got "
                f"{images.dtype} {tuple(images.shape)}; repeat a grey channel three times, drop "
                "alpha, scale 16 bits to 8"
            )
        height, width = images.shape[2:]
        if not height or not width:
            raise ValueError(f"images have no pixels: {tuple(images.shape)}")
        labels = torch.empty((len(images), height, width), dtype=torch.uint8, device=images.device)
        step = max(1, min(batch, batch * 256 * 256 // (height * width)))
        for start in range(0, len(images), step):
            part = images[start : start + step].to(self.device)
            labels[start : start + step] = self._parse(part).to(images.device)
        return labels

    def _parse(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        x = images.flip(1) if self._rgb else images
        logits = self.network(network_input(x, self.size, self._mean, self._std))
        if isinstance(logits, tuple):
            logits = logits[0]
        side = (min(height, _MAX_SIDE), min(width, _MAX_SIDE))
        if side != tuple(logits.shape[2:]):
            logits = F.interpolate(logits, side, mode="bilinear")
        labels = logits.max(1).indices.to(torch.uint8)  # several times faster than argmax
        if self._remap is not None:
            labels = self._remap[labels.int()]
        if side != (height, width):
            labels = F.interpolate(labels[:, None], (height, width), mode="nearest-exact")[:, 0]
        return labels


def network_input(images: Tensor, size: int, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Images `(N, 3, H, W)` uint8 as networks take them: square, normalised, channels last."""
    if images.shape[2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def parser_names() -> list[str]:
    """Return the names of the parsers that ship with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load_parser(name_or_path: str | Path, device: str = "auto") -> Parser:
    """Load a parser by the name it ships under, or from a file, recognised by its contents.

    Files: the light network (`.safetensors` that `train_segmenter.py` wrote), BiSeNet with
    ResNet-18 or 34 in either public naming, and SARFace's SwiftFormer-L1 U-Net (`.safetensors`,
    `.pt`, `.pth`, `.ckpt`; never unpickled beyond tensors). Raises `FileNotFoundError` or
    `ValueError` saying what was found.
    """
    path = WEIGHTS / f"{name_or_path}.safetensors"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(parser_names())
        raise FileNotFoundError(f"{name_or_path}: neither a file nor one of the parsers: {known}")
    state, header = read_weights(path)
    try:
        return _recognise(state, header, path, device)
    except RuntimeError as error:  # load_state_dict names what is missing or misshapen
        raise ValueError(f"{path}: {error}") from None


def _recognise(state: dict[str, Tensor], header: dict[str, str], path: Path, device: str) -> Parser:
    if "stage16.0.0.weight" in state:
        network: nn.Module = LightParser()
        network.load_state_dict(state)
        size = header.get("size", "128")
        if not size.isdecimal() or int(size) % 16 or not 32 <= int(size) <= 1024:
            raise ValueError(f"{path}: its header says size {size}")
        return Parser(network, path.stem, int(size), imagenet=False, device=device)
    if "cp.resnet.conv1.weight" in state or "fpn.backbone.conv1.weight" in state:
        renamed = zllrunning_key if "cp.resnet.conv1.weight" in state else str
        deep = renamed("fpn.backbone.layer1.2.conv1.weight") in state
        network = BiSeNet(34 if deep else 18, classifier="fpn.backbone.fc.weight" in state)
        names = {renamed(key): key for key in network.state_dict()}
        network.load_state_dict({names.get(key, key): value for key, value in state.items()})
        remap = BISENET_TO_CELEBAMASK
        return Parser(network, path.stem, 512, imagenet=True, remap=remap, device=device)
    if "encoder.patch_embed.0.weight" in state:
        network = SwiftFormerUNet()
        network.load_state_dict(state)
        return Parser(network, path.stem, 128, imagenet=True, device=device)
    raise ValueError(
        f"{path}: not a known face parser (light network, BiSeNet ResNet-18/34, SwiftFormer-L1 "
        f"U-Net); its first weights are {', '.join(list(state)[:5]) or 'none'}"
    )


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the state dict of a file of weights, and the header of a safetensors file.

    Raises `FileNotFoundError`, or `ValueError` for files that are damaged or hold anything but
    tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return state, file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a file of weights that is safe to load ({reason})") from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: holds no state dict")
    return {str(key).removeprefix("module."): value for key, value in content.items()}, {}


def _version(network: nn.Module, size: int) -> str:
    digest = hashlib.sha256(f"{type(network).__name__} {size}".encode())
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _auto(device: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
