"""Write a benchmark's result with what is needed to repeat it."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("scanfoundry", "torch", "deepspeed", "monai", "timm", "blosc2", "numpy")


def record(name: str, result: dict[str, Any]) -> Path:
    """Store `result` as results/<name>.json with date, device, versions and the command; print where."""
    page = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} cores {platform.machine()}, {_gpu()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_anywhere, sys.argv[1:])]),
        "result": result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(page, indent=1) + "\n")
    print(f"written: benchmarks/results/{name}.json")
    return path


def _anywhere(word: str) -> str:
    """A word of the command line without the folders of this machine."""
    root = RESULTS.parents[1]
    word = word.replace(str(root), ".").replace(str(root.parent), "..")
    return Path(word).name if Path(word).is_absolute() else word


def _gpu() -> str:
    import torch  # not every benchmark needs it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
