"""Write a benchmark's result with what is needed to repeat it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("scanfoundry", "torch", "deepspeed", "monai", "timm", "blosc2", "numpy")


def record(
    name: str, result: dict[str, Any], folder: Path = RESULTS, commit: str | None = None, quiet: bool = False
) -> Path:
    """Store a result as <name>.json with date, device, versions, commit and command, and print where.

    Args:
        name: of the file.
        result: what was found.
        folder: where the file goes.
        commit: of the code; None: of this checkout.
        quiet: print nothing.
    """
    page = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} cores {platform.machine()}, {_gpu()}",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES} | _cuda(),
        "commit": commit or _commit(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_anywhere, sys.argv[1:])]),
        "result": result,
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(page, indent=1) + "\n")
    os.replace(beside, path)  # a kill leaves the file of before
    if not quiet:
        print(f"written: benchmarks/results/{path.name}" if folder == RESULTS else f"written: {path}")
    return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with a plus where tracked files differ from it; None where git knows none."""
    words = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


def _anywhere(word: str) -> str:
    """A word of the command line without the folders of this machine."""
    root = RESULTS.parents[1]
    word = word.replace(str(root), ".").replace(str(root.parent), "..")
    return Path(word).name if Path(word).is_absolute() else word


def _gpu() -> str:
    import torch  # not every benchmark needs it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _cuda() -> dict[str, Any]:
    """Versions of CUDA and cuDNN, where there is a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
