"""Features of a frozen encoder, computed once for each scan and kept beside the run: a CPU is then enough."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scanfoundry.configs.files import write_whole


class FeatureStore:
    """The deepest features (F, d, h, w) of scans, by name, in half precision on disk.

    Features whose file cannot be read are computed again.

    Args:
        folder: of one encoder at one plan; None keeps nothing.
        contents: by key of a case, a checksum of its scan. A name begins with a key: features of a scan that was
            changed since are computed again.
    """

    def __init__(self, folder: Path | None, contents: Mapping[str, str] | None = None) -> None:
        self._folder, self._contents = folder, contents or {}
        self.computed = 0

    def get(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """The features of `name`; `compute` gives them where they are not there yet."""
        content = self._contents.get(name.partition("-")[0])
        path = None if self._folder is None else self._folder / f"{name}{f'-{content}' if content else ''}.npy"
        if path is not None and path.exists():
            try:
                return torch.from_numpy(np.load(path))
            except (OSError, ValueError, EOFError):
                path.unlink(missing_ok=True)
        found = compute().half().cpu()
        self.computed += 1
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part: _save(part, found.numpy()))
        return found


def digest_of(*parts: str) -> str:
    """A name for what all of `parts` decide, as 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, array)
