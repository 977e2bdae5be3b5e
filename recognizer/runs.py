"""Run folders: configuration, metrics and events of one training, safe to kill and to resume."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class RunExistsError(FileExistsError):
    """The run folder exists and nothing was said about resuming or replacing it."""


def prepare_run(folder: str | Path, resume: bool = False, overwrite: bool = False) -> Path:
    """Create a run folder, never on top of another run unless asked.

    Raises:
        RunExistsError: the folder has contents, and neither `resume` nor `overwrite` is given.
        ValueError: both are given, or `overwrite` names a folder that holds no run.
    """
    folder = Path(folder)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    if folder.exists() and any(folder.iterdir()):
        if overwrite:
            if not (folder / "config.json").is_file():
                raise ValueError(f"{folder} is not a run folder (no config.json); not deleting it")
            shutil.rmtree(folder)
        elif not resume:
            raise RunExistsError(
                f"run folder {folder} exists; continue it with --resume true, replace it with "
                "--overwrite true, or choose another with --run"
            )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step, so that a kill leaves the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_json(path: Path, payload: Any) -> None:
    """Write JSON atomically; numpy numbers and arrays become plain ones."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        return str(value)

    write_atomically(path, (json.dumps(payload, indent=1, default=plain) + "\n").encode())


class MetricsLog:
    """TensorBoard events and `metrics.jsonl` of a run.

    Args:
        folder: the run folder.
        step: the step a resumed run continues from; later lines, written after the checkpoint it
            continues from, are dropped.
    """

    def __init__(self, folder: Path, step: int = 0):
        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= step]  # type: ignore[operator]
            write_atomically(self._path, "".join(line + "\n" for line in kept).encode())
        self._file = self._path.open("a", buffering=1)
        self.writer = SummaryWriter(str(folder / "events"), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write scalars of one step."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Show an RGB image, uint8 `(H, W, 3)`, in TensorBoard."""
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files."""
        self.writer.close()
        self._file.close()


class Progress:
    """Progress bar, metrics and time of a training.

    Args:
        folder: of the run.
        total: step at which the training ends.
        done: step from which it goes on; None at the start, when lines of an earlier attempt are
            dropped.
        seconds: `seconds` of the earlier attempts.
    """

    def __init__(
        self, folder: Path, total: int, done: int | None = None, seconds: tuple | list = (0.0, 0.0)
    ):
        self.metrics = MetricsLog(folder, -1 if done is None else done)
        self.total = total
        self.bar = tqdm(total=total, initial=done or 0, unit="step", desc="train")
        self._start = _clocks() - np.array(seconds)
        self._score, self._validation = 0.0, "-"

    @property
    def seconds(self) -> list[float]:
        """Seconds of training so far, over all attempts: by the clock, and of the processor."""
        return (_clocks() - self._start).tolist()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done here does not count as training."""
        seconds = self.seconds
        yield
        self._start = _clocks() - np.array(seconds)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics, with seconds and steps a second, and move the bar."""
        if "charts/episodic_return" in metrics:
            self._score += 0.02 * (metrics["charts/episodic_return"] - self._score)
        clock, processor = self.seconds
        times = {"charts/seconds": clock, "charts/cpu_seconds": processor}
        self.metrics.log(step, metrics | times | {"charts/SPS": step / clock})
        self.bar.update(min(step, self.total) - self.bar.n)
        if "validation/margin_correct" in metrics:
            self._validation = f"{100 * metrics['validation/margin_correct']:.1f} %"
        shown = {"score": f"{self._score:+.3f}", "validation": self._validation}
        self.bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        """Close the bar and the files."""
        self.bar.close()
        self.metrics.close()


def _clocks() -> np.ndarray:
    return np.array([time.monotonic(), time.process_time()])


def _step_of(line: str) -> int | None:
    """The step of a metrics line, None for one that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
