"""Options of recognizer training, each explained where it is declared."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class TrainOptions:
    """Train a face recognizer: a backbone with a margin head, from scratch or from loaded weights.

    Everything ends up in the run folder: config.json, TensorBoard events, metrics.jsonl,
    last.safetensors, best.safetensors (both load with `load_recognizer`) and resume.pt. A killed
    run continues where it was with `--config RUN/config.json --resume true`; on one process it then
    ends with the same weights, bit for bit.
    """

    run: str = "runs/recognizer"
    """Run folder."""
    resume: bool = False
    """Continue the run of this folder from its last checkpoint."""
    overwrite: bool = False
    """Delete the run of this folder and start again."""

    data: str = "faceworld"
    """Faces to train on: `faceworld` (the embedded world) or `faceworld-clean` (the same without
    occluders and other misleading things), a folder with `train.rec`, a .rec file, a .lst file, or
    a folder of NAME/*.jpg."""
    faceworld_images: int = 60
    """Pictures a person of the embedded world; more are drawn at first use."""
    hold_out: int = 1
    """Images a person kept from training, to measure correct and margin-correct rates on; everybody
    keeps two. Of the embedded world, any number above zero stands for its validation split."""
    verification: list[str] = field(default_factory=list)
    """Verification sets: .bin files, pairs.txt files or folders that hold one."""
    workers: int = 0
    """Processes a device that read images; 0 reads in the training process, in threads."""

    backbone: str = "ir_tiny"
    """Network, a name of `recognizer.backbones.BACKBONES`; ignored with `init`."""
    init: str = ""
    """Fine-tune this: a name or a file for `load_recognizer`, with its network and input."""
    init_head: Literal["auto", "random", "enrol", "keep"] = "auto"
    """First class weights: random, the mean embedding of a class (enrol), or those of `init` (keep:
    the same people). `auto` enrols when fine-tuning."""
    head: Literal["cosface", "arcface", "adaface"] = "cosface"
    """Margin head."""
    s: float = 64.0
    """Scale of the head's logits."""
    m: float | None = None
    """Margin; by default the head's own: CosFace 0.4, ArcFace 0.5, AdaFace 0.4."""
    h: float = 0.333
    """AdaFace: how far the margin follows the feature norm."""
    t_alpha: float = 0.01
    """AdaFace: weight of a batch in the moving averages of the norm."""

    epochs: int = 26
    """Passes over the data; the last, incomplete batch of a pass is left out."""
    batch_size: int = 128
    """Faces in one optimizer step, over all devices and accumulation steps: what a run learns does
    not depend on how many devices share it."""
    accumulation: int = 1
    """Parts that a device computes its share of a batch in, to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9, or AdamW."""
    lr: float = 0.1
    """Learning rate at the start."""
    backbone_lr: float = 1.0
    """What the backbone's learning rate is of `lr`, which is the head's; 0 trains the head alone.
    When fine-tuning on few people, class weights can take larger steps than what embeds others."""
    schedule: Literal["steps", "cosine"] = "steps"
    """`steps` multiplies the learning rate by `gamma` after every milestone; `cosine` takes it to
    zero over the run."""
    milestones: list[int] = field(default_factory=lambda: [12, 20, 24])
    """Epochs after which the learning rate drops."""
    gamma: float = 0.1
    """What it is multiplied by."""
    warmup: int = 0
    """Optimizer steps over which the learning rate rises from zero."""
    weight_decay: float = 5e-4
    """Weight decay of matrices and convolutions; BatchNorm, PReLU and biases have none."""

    flip: float = 0.5
    """Probability that a face is mirrored."""
    low_resolution: float = 0.0
    """Probability that a face is shrunk to 20-100 % and enlarged again."""
    crop: float = 0.0
    """Probability that only a random rectangle of a face is left."""
    photometric: float = 0.0
    """Probability that brightness, contrast and saturation are changed."""
    erase: float = 0.0
    """Probability that 5-50 % of a face is filled with the network's mean colour, in connected
    blocks of a coarse grid: practice for faces from which regions are dropped."""

    drop_regions: float = 0.0
    """Probability that random regions of a face are dropped as an agent of SARFace-v0 would; needs
    faces with parsing maps, such as `faceworld`."""

    seed: int = 0
    """Seed of weights, order, augmentation and dropout."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to train; `auto` is CUDA when there is one."""
    devices: int = 1
    """GPUs, or processes on the CPU, a node; they share each batch (DDP)."""
    nodes: int = 1
    """Machines. Start the same command on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK set, or
    with `torchrun --nnodes N ... -- train_recognizer.py ...`; without its `--`, torchrun takes
    options such as --run for its own."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Number format of the backbone; the head always computes in 32 bits."""

    validate_every: int = 0
    """Optimizer steps between validations; 0 validates after every epoch."""
    checkpoint_every: int = 0
    """Optimizer steps between checkpoints; 0 makes them at validations only."""
    log_every: int = 20
    """Optimizer steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulation", 1),
            ("devices", 1),
            ("nodes", 1),
            ("log_every", 1),
            ("faceworld_images", 1),
            ("hold_out", 0),
            ("workers", 0),
            ("warmup", 0),
            ("validate_every", 0),
            ("checkpoint_every", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.backbone_lr < 0:
            raise ValueError(f"backbone_lr must be at least 0, got {self.backbone_lr}")
        parts = self.devices * self.nodes * self.accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared by {self.devices} devices on "
                f"{self.nodes} nodes in {self.accumulation} parts each: no multiple of {parts}"
            )
        if self.init_head == "keep" and not self.init:
            raise ValueError("init_head keep needs init: a recognizer to keep the head of")
