"""What became of every key when a file of others was read into a model of ours."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SHOWN = 4  # keys that a line names before it counts them by family


@dataclass(frozen=True)
class Report:
    """Every key of the file is in used, adapted or left; every key of the model in used, adapted or missing.

    used      model key -> the file's key, values unchanged
    adapted   model key -> (the file's key, how)
    left      the file's key -> why it is not in the model
    missing   model key -> why it was initialised fresh
    """

    source: str  # name of the file
    what: str  # the network it was recognised as
    used: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the user should know about the weights

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.what}", f"  used as they are: {families(self.used)}"]
        for how, keys in _inverted({key: how for key, (_, how) in self.adapted.items()}).items():
            lines.append(f"  adapted: {families(keys)}: {how}")
        for why, keys in _inverted(self.left).items():
            lines.append(f"  left in the file: {families(keys)}: {why}")
        for why, keys in _inverted(self.missing).items():
            lines.append(f"  initialised fresh: {families(keys)}: {why}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _inverted(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        groups.setdefault(reason, []).append(key)
    return groups


def families(keys: Iterable[str]) -> str:
    """A few keys by name, many by what their names begin with, counted: 'blocks.* (144), norm.* (2)'."""
    keys = list(keys)
    if len(keys) <= SHOWN:
        return ", ".join(keys) or "none"
    counts = Counter(re.sub(r"\d+", "*", key.split(".")[0]) + (".*" if "." in key else "") for key in keys)
    return f"{len(keys)}: " + ", ".join(f"{name} ({n})" if n > 1 else name for name, n in counts.items())
