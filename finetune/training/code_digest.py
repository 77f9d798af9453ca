"""A digest of the code that a training runs: what other code left is not continued."""

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch

from scanfoundry.configs.plugins import plugin_files
from scanfoundry.finetune.training.plugin_sources import with_modules_beside

PACKAGES = "configs", "backbones", "datasets", "finetune"  # whose code a training runs


def with_code(text: str) -> str:
    """A digest of `text` and of the code, as 32 hexadecimal digits."""
    return hashlib.sha256(f"{text} {_code()}".encode()).hexdigest()[:32]


@cache
def _code() -> str:
    digest = hashlib.sha256(f"torch {torch.__version__} numpy {np.__version__}".encode())
    for name in PACKAGES:
        spec = importlib.util.find_spec(f"scanfoundry.{name}")
        root = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    for path in with_modules_beside(plugin_files()):
        digest.update(b"plug-in\0" + path.read_bytes())
    return digest.hexdigest()
