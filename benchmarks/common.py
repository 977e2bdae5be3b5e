"""What every benchmark shares: where it ran, a printed table, a JSON file."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def environment(*packages: str) -> dict[str, Any]:
    """Say how a result was made, so that it can be made again.

    Args:
        packages: Further distributions to name the versions of.

    Returns:
        Command line, git commit (with `+changes` when tracked source files differ from it),
        machine and versions.
    """
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {module.name}" if module else f"python {Path(sys.argv[0]).name}"
    names = ("torch", "numpy", "opencv-python", *packages)
    return {
        "command": " ".join([program, *map(shlex.quote, sys.argv[1:])]),
        "commit": _commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            # Speeds, and bfloat16's above all, depend on it.
            "vectors": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in names},
    }


def write_results(name: str, payload: dict[str, Any]) -> Path:
    """Write `payload` and, where it has none, `environment()` to `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"environment": environment(), **payload}, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def print_table(headers: list[str], rows: list[list[Any]]) -> None:
    """Print an aligned table: first column to the left, the others to the right."""
    cells = [[str(value) for value in row] for row in [headers, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        first, *rest = row
        padded = [first.ljust(widths[0])]
        padded += [value.rjust(width) for value, width in zip(rest, widths[1:], strict=True)]
        print("  ".join(padded))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
