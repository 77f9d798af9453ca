"""Where files lie once links are followed, for many files of few folders."""

import os
from pathlib import Path


class RealPaths:
    """As `Path.resolve`, with each folder and each file looked up once: links that change meanwhile are not seen."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}
        self._files: dict[tuple[Path, str], Path] = {}

    def of(self, root: Path, relative: str) -> Path:
        """The real path of the file at `relative` ('/' between parts) below `root`."""
        found = self._files.get((root, relative))
        if found is None:
            found = self._files[root, relative] = self._looked_up(os.path.join(root, relative))
        return found

    def _looked_up(self, path: str) -> Path:
        if os.path.islink(path):
            return Path(os.path.realpath(path))
        folder, name = os.path.split(path)
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = os.path.realpath(folder)
        return Path(real, name)
