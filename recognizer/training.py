"""Training of a recognizer, the same code on one process, several GPUs and several nodes.

Lightning Fabric places, launches and synchronises. A step is a function of (weights, optimizer
state, seed, step number): the order of the faces comes from (seed, epoch), augmentation from (seed,
step), dropout from (seed, step, part), so that nothing but the step number has to be remembered to
continue exactly.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from recognizer.checkpoint import save_recognizer
from recognizer.data.augment import Augmentation
from recognizer.data.training_set import MemorySet, open_training_set
from recognizer.recognizer import Recognizer
from recognizer.runs import MetricsLog, prepare_run, write_json
from recognizer.training_options import TrainOptions
from recognizer.training_setup import (
    add_head,
    build_optimizer,
    build_recognizer,
    learning_rate,
)
from recognizer.validation import HeldOut, Validation, VerificationSet

STATE = "resume.pt"
# What may differ between a run and its continuation.
_FREE = ("run", "resume", "overwrite", "workers")


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


class Masking(Protocol):
    """Drops parts of parsed faces, as a function of random numbers.

    Attributes:
        columns: random numbers it takes a face.
    """

    columns: int

    def __call__(self, images: Tensor, parsing: Tensor, uniform: Tensor, /) -> Tensor:
        """Masked images of uint8 BGR images `(N, 3, H, W)` with parsing maps `(N, H, W)`."""
        ...


def train(options: TrainOptions, masking: Masking | None = None) -> dict[str, float]:
    """Train as the options say; returns the last validation's metrics and the best score.

    With `devices` above one, the other processes are started with the command line of this one.

    Args:
        options: everything that can be said on the command line.
        masking: for `drop_regions`; which regions there are is for the environment to say.

    Raises:
        FileExistsError: the run folder exists and neither `resume` nor `overwrite` is set.
        ValueError, FileNotFoundError: options, data or weights that cannot be used.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    fabric = _fabric(options)
    folder = _prepare(fabric, options)
    return Trainer(fabric, options, folder, masking).run()


class Objective(nn.Module):
    """Mean loss of a batch; one module, so that DDP sees backbone and head in one forward pass."""

    def __init__(self, recognizer: Recognizer):
        super().__init__()
        self.recognizer = recognizer

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the margin logits of uint8 BGR images, a scalar."""
        feature = self.recognizer(images)
        assert self.recognizer.head is not None
        # Half precision is too coarse for logits scaled by 64.
        with torch.autocast(feature.device.type, enabled=False):
            feature = feature.float()
            norm = feature.norm(dim=1, keepdim=True).clamp_min(1e-12)
            return F.cross_entropy(self.recognizer.head(feature / norm, norm, labels), labels)


class Trainer:
    """One training run; see `train`."""

    def __init__(
        self, fabric: Fabric, options: TrainOptions, folder: Path, masking: Masking | None
    ):
        self.fabric, self.options, self.folder = fabric, options, folder
        self.masking = masking
        self.state = self._read_state() if options.resume else None
        torch.manual_seed(options.seed)
        self.recognizer = build_recognizer(options)
        size = self.recognizer.spec.size
        self.data, held_out = open_training_set(
            options.data, options.hold_out, options.faceworld_images, size
        )
        if masking is not None:
            if not isinstance(self.data, MemorySet) or self.data.faces.parsing is None:
                raise ValueError(f"drop_regions needs parsed faces; {options.data} are not")
            self.data.with_parsing = True
        self.validations: list[Validation] = []
        with _first_speaks_for_all(fabric):
            if fabric.is_global_zero:
                self.validations += [HeldOut(held_out)] if held_out is not None else []
                self.validations += [VerificationSet(path, size) for path in options.verification]
        self.epoch_steps = len(self.data.labels) // options.batch_size
        if self.epoch_steps == 0:
            raise ValueError(
                f"{options.data} has {len(self.data.labels)} faces to train on, "
                f"too few for a batch of {options.batch_size}"
            )
        self.steps = self.epoch_steps * options.epochs
        self.step, self.best = 0, -math.inf
        self.metrics: dict[str, float] = {}
        # DDP hands the first process's weights to all others.
        enrol = self.state is None and fabric.is_global_zero
        add_head(self.recognizer, options, self.data, enrol)
        self.recognizer.to(fabric.device).train()
        objective: nn.Module = Objective(self.recognizer)
        if fabric.device.type == "cuda" and fabric.world_size > 1:
            # There is none for the CPU: there, every process normalises by its own part.
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = fabric.setup_module(objective)
        # Any: Fabric declares one optimizer or several.
        self.optimizer: Any = fabric.setup_optimizers(build_optimizer(self.recognizer, options))
        self.augmentation = Augmentation(
            **{k: getattr(options, k) for k in ("flip", "low_resolution", "crop")},
            **{k: getattr(options, k) for k in ("photometric", "erase")},
            fill=self.recognizer.spec.mean_bgr(),
        )
        self.loss_sum = torch.zeros((), device=fabric.device, dtype=torch.float64)
        self.loss_count = 0
        if self.state is not None:
            self._restore(self.state)

    def run(self) -> dict[str, float]:
        """Train to the end, from wherever the run is."""
        options, fabric = self.options, self.fabric
        start = -1 if self.state is None else self.step  # no line of an earlier attempt is kept
        self.log = MetricsLog(self.folder, start) if fabric.is_global_zero else None
        bar = tqdm(
            total=self.steps * options.batch_size,
            initial=self.step * options.batch_size,
            unit="img",
            desc=self.recognizer.name,
            disable=not fabric.is_global_zero,
        )
        validate_every = options.validate_every or self.epoch_steps
        checkpoint_every = options.checkpoint_every or validate_every
        postfix: dict[str, str] = {}
        try:
            if options.init and self.step == 0:
                self._validate()  # what fine-tuning starts from
            self.model.train()
            for batch in self._batches():
                self._update(batch)
                last = self.step == self.steps
                validate = last or self.step % validate_every == 0
                save = validate or self.step % checkpoint_every == 0
                if save or self.step % options.log_every == 0:
                    postfix["loss"] = f"{self._mean_loss(reset=False):.3f}"
                if last or self.step % options.log_every == 0:
                    self._write_log()
                if validate and (score := self._validate()) is not None:
                    postfix["score"] = f"{score:.4f}"
                if save:
                    self._save()
                bar.set_postfix(postfix, refresh=False)
                bar.update(options.batch_size)
        finally:
            bar.close()
            if self.log is not None:
                self.log.close()
        fabric.barrier()
        return {**self.metrics, "best score": self.best} if self.metrics else {}

    def _batches(self) -> Iterator[list[tuple[Tensor, ...]]]:
        """This process's parts of every batch that is left, read ahead by workers if any."""
        options, world = self.options, self.fabric.world_size
        part = options.batch_size // (world * options.accumulation)
        for epoch in range(self.step // self.epoch_steps, options.epochs):
            order = np.random.default_rng([options.seed, epoch]).permutation(len(self.data.labels))
            parts = [
                order[start : start + part].tolist()
                for step in range(self.step - epoch * self.epoch_steps, self.epoch_steps)
                for place in self._parts()
                for start in [step * options.batch_size + place * part]
            ]
            # `batch_size=None` hands each list of indices to the set as it is.
            loader = iter(
                DataLoader(
                    self.data,  # type: ignore[arg-type]
                    batch_size=None,
                    sampler=parts,
                    num_workers=options.workers,
                    pin_memory=self.fabric.device.type == "cuda",
                )
            )
            for _ in range(len(parts) // options.accumulation):
                yield [next(loader) for _ in range(options.accumulation)]

    def _parts(self) -> list[int]:
        """Which of the parts of a batch are this process's, in the order it computes them."""
        world = self.fabric.world_size
        return [i * world + self.fabric.global_rank for i in range(self.options.accumulation)]

    def _update(self, batch: list[tuple[Tensor, ...]]) -> None:
        """One optimizer step; the loss is kept on the device, so that nothing waits for it."""
        options = self.options
        generator = torch.Generator().manual_seed(_seed(options.seed, self.step))
        uniform = torch.rand(options.batch_size, Augmentation.COLUMNS, generator=generator)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(options, self.step, self.epoch_steps)
        if self.masking is not None:
            drops = torch.rand(options.batch_size, self.masking.columns, generator=generator)
        for number, (place, part) in enumerate(zip(self._parts(), batch, strict=True)):
            torch.manual_seed(_seed(options.seed, self.step, place + 1))  # dropout
            images, labels, *parsing = self.fabric.to_device(part)
            rows = slice(place * len(labels), (place + 1) * len(labels))
            if self.masking is not None:
                images = self.masking(images, parsing[0], drops[rows].to(images.device))
            images = self.augmentation(images, uniform[rows])
            not_last = number + 1 < options.accumulation
            with self.fabric.no_backward_sync(self.model, enabled=not_last):
                loss = self.model(images, labels)
                self.fabric.backward(loss / options.accumulation)
            self.loss_sum += loss.detach()
            self.loss_count += 1
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def _mean_loss(self, reset: bool) -> float:
        """Mean over all processes since the last log line.

        Raises:
            TrainingDivergedError: it is not finite.
        """
        total: Any = self.fabric.all_reduce(self.loss_sum.clone(), reduce_op="mean")
        loss = float(total) / self.loss_count
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"the loss is {loss} within the {self.loss_count} updates before step "
                f"{self.step}; lower lr ({self.options.lr:g}), add warmup, or use 32-true "
                f"precision. The last good checkpoint is in {self.folder}"
            )
        if reset:
            self.loss_sum.zero_()
            self.loss_count = 0
        return loss

    def _write_log(self) -> None:
        loss = self._mean_loss(reset=True)
        if self.log is not None:
            lr = self.optimizer.param_groups[-1]["lr"]
            values = {"epoch": self.step / self.epoch_steps, "train/loss": loss, "train/lr": lr}
            self.log.log(self.step, values)

    def _validate(self) -> float | None:
        """Validate on the first process; keep the weights if they are the best so far.

        Returns:
            The score, the mean of every validation's first metric; None if there is nothing to do.
        """
        score = None
        if self.log is not None and self.validations:
            self.recognizer.eval()
            results = [validation(self.recognizer) for validation in self.validations]
            self.recognizer.train()
            self.metrics = {key: value for result in results for key, value in result.items()}
            score = float(np.mean([next(iter(result.values())) for result in results]))
            self.log.log(self.step, {**self.metrics, "score": score})
            if score > self.best:
                self.best = score
                self._save_weights("best.safetensors")
        self.fabric.barrier()
        return score

    def _save_weights(self, name: str) -> None:
        save_recognizer(self.recognizer, self.folder / name, overwrite=True)

    def _save(self) -> None:
        """Write the weights for users and, in one file and one replacement, all that resumes."""
        if not self.fabric.is_global_zero:
            return
        self._save_weights("last.safetensors")
        state = {
            "step": self.step,
            "best": self.best,
            "metrics": self.metrics,
            "loss_sum": float(self.loss_sum),
            "loss_count": self.loss_count,
            "recognizer": self.recognizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        temporary = self.folder / (STATE + ".tmp")
        torch.save(state, temporary)
        temporary.replace(self.folder / STATE)

    def _read_state(self) -> dict[str, Any] | None:
        path = self.folder / STATE
        if not path.is_file():
            return None  # killed before its first checkpoint: from the beginning
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can fail in any way it likes
            raise ValueError(
                f"{path}: not a checkpoint of a run ({type(error).__name__}); start from "
                f"{self.folder / 'last.safetensors'} with --init, or again with --overwrite true"
            ) from None

    def _restore(self, state: dict[str, Any]) -> None:
        self.recognizer.load_state_dict(state["recognizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.best, self.metrics = state["step"], state["best"], state["metrics"]
        self.loss_sum.fill_(state["loss_sum"])
        self.loss_count = state["loss_count"]


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _fabric(options: TrainOptions) -> Fabric:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    several = options.devices * options.nodes > 1
    fabric = Fabric(
        accelerator=device,
        devices=options.devices,
        num_nodes=options.nodes,
        strategy="ddp" if several else "auto",
        precision=options.precision,
    )
    fabric.launch()
    return fabric


@contextmanager
def _first_speaks_for_all(fabric: Fabric) -> Iterator[None]:
    """Raise what the first process raises in all, which would wait for it otherwise."""
    problem: Exception | None = None
    try:
        yield
    except (OSError, ValueError) as error:
        problem = error
    problem = fabric.broadcast(problem)
    if problem is not None:
        raise problem


def _prepare(fabric: Fabric, options: TrainOptions) -> Path:
    """The run folder, made by the first process."""
    folder = Path(options.run)
    with _first_speaks_for_all(fabric):
        if fabric.is_global_zero:
            prepare_run(folder, options.resume, options.overwrite)
            config = folder / "config.json"
            if options.resume and config.is_file():
                _check_same(json.loads(config.read_text()), asdict(options), config)
            else:
                write_json(config, asdict(options))
    return folder


def _check_same(before: dict[str, Any], now: dict[str, Any], config: Path) -> None:
    before = asdict(TrainOptions()) | before  # options that are newer than the run
    changed = [
        f"{name} was {before[name]!r}, is {value!r}"
        for name, value in now.items()
        if name not in _FREE and before[name] != value
    ]
    if changed:
        raise ValueError(
            f"not the run of {config}: {'; '.join(changed)}. "
            f"Continue it with --config {config} --resume true"
        )
