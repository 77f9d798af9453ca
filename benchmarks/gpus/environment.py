"""What this machine is, and which packages are there or missing."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from gpus.parts import Row, Setting

# Modules and the packages that bring them: what every part needs, and what some need.
NEEDED = {
    "torch": "torch", "numpy": "numpy", "pydantic": "pydantic", "yaml": "PyYAML", "rich": "rich", "typer": "typer",
    "blosc2": "blosc2", "isal": "isal", "safetensors": "safetensors", "PIL": "pillow", "timm": "timm",
    "torchvision": "torchvision",
}  # fmt: skip
OPTIONAL = {
    "deepspeed": "deepspeed", "webdataset": "webdataset", "triton": "triton", "monai": "monai", "nibabel": "nibabel",
    "scipy": "scipy", "sklearn": "scikit-learn", "peft": "peft", "matplotlib": "matplotlib", "jinja2": "Jinja2",
    "SimpleITK": "SimpleITK", "tifffile": "tifffile", "imagecodecs": "imagecodecs", "wandb": "wandb",
    "submitit": "submitit",
}  # fmt: skip


def environment_row(setting: Setting) -> Row:
    """Device, memory, versions; `missing` are packages without which parts are left out or run otherwise."""
    row: Row = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    row["ram_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    shared = "/dev/shm"
    row["shared_memory_gib"] = round(shutil.disk_usage(shared).total / 2**30, 1) if os.path.isdir(shared) else None
    row["disk_free_gib"] = round(shutil.disk_usage(setting.work).free / 2**30, 1)
    if setting.device == "cuda":
        row |= gpu()
    known = NEEDED | OPTIONAL
    row["packages"] = {package: installed(package) for module, package in known.items() if find_spec(module)}
    row["missing"] = [package for module, package in known.items() if find_spec(module) is None]
    return row


def gpu() -> dict[str, Any]:
    """The GPU and the libraries that drive it."""
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": facts.name, "gpu_gib": round(facts.total_memory / 2**30, 1),
        "multiprocessors": facts.multi_processor_count, "capability": f"{facts.major}.{facts.minor}",
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())), "bf16": torch.cuda.is_bf16_supported(),
    }  # fmt: skip


def installed(package: str) -> str:
    """The version of a package; of one that was not installed by pip, that it is there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "version unknown"
