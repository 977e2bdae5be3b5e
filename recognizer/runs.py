"""Run folders: configuration, metrics and events of one training, safe to kill and to resume."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter


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

    def close(self) -> None:
        """Flush and close the files."""
        self.writer.close()
        self._file.close()


def _step_of(line: str) -> int | None:
    """The step of a metrics line, None for one that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
