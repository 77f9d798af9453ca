"""Paths: patterns with '*', which name cases, and where files lie once links are followed."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers.formats import suffix_of


def split_pattern(path: Path) -> tuple[Path, str] | None:
    """Split a path with '*' into a folder and a pattern below it: 'd/img_*.png' is ('d', 'img_*.png').

    Returns:
        None for a path without '*', or of something that exists.
    """
    parts = path.parts
    first = next((number for number, part in enumerate(parts) if "*" in part), None)
    if first is None or path.exists():
        return None
    return Path(*parts[:first]), "/".join(parts[first:])


def cases_of(pattern: str, relatives: Iterable[str]) -> dict[str, str]:
    """The files that a pattern describes, by case.

    A '*' stands for any text without '/', at the end for a name without its suffix. The same text twice in a row
    ('x/x_t1.nii.gz') counts once. Suffixes may be in capitals.

    Args:
        pattern: below a folder.
        relatives: paths of files below that folder.

    Raises:
        UserError: two files are of one case.
    """
    found: dict[str, str] = {}
    suffix = suffix_of(pattern)  # in small letters
    expression = _expression((pattern[: len(pattern) - len(suffix)] + suffix).removesuffix(".*"))
    for relative in sorted(relatives):
        suffix = suffix_of(relative)
        stem = unicodedata.normalize("NFC", relative[: len(relative) - len(suffix)])
        match = expression.fullmatch(stem if pattern.endswith("*") else stem + suffix)
        if match is None:
            continue
        groups = match.groups()
        name = "/".join(group for i, group in enumerate(groups) if i == 0 or group != groups[i - 1])
        if name in found:
            raise UserError(f"'{pattern}' finds two files of case '{name}': {found[name]} and {relative}")
        found[name] = relative
    return found


def _expression(pattern: str) -> re.Pattern[str]:
    if "*" not in pattern:
        raise UserError(f"'{pattern}' is no folder and holds no '*' that tells the cases apart")
    parts = re.split(r"(\*)", unicodedata.normalize("NFC", pattern))
    return re.compile("".join("([^/]*)" if part == "*" else re.escape(part) for part in parts))


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
