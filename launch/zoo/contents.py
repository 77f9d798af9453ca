"""Tensors and records in what was read of a file, as lines that a terminal can show."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_TEXT = 120  # characters of a record that are shown
_DEEP = 12  # levels of nested records that are followed


@dataclass(frozen=True)
class TensorSummary:
    """One tensor by its place in the file."""

    group: str  # what it lies in: '' at the top
    key: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{shortened(self.key)} {'x'.join(map(str, self.shape)) or 'one number'}"


@dataclass(frozen=True)
class FileContents:
    """What a file holds."""

    kind: str
    tensors: list[TensorSummary]
    metadata: dict[str, str] = field(default_factory=dict)  # other records, shortened


def tensors_in(content: Any, group: str = "", key: str = "", depth: int = 0) -> Iterator[TensorSummary]:
    """Every tensor in nested dicts and sequences."""
    import torch

    if isinstance(content, torch.Tensor):
        yield TensorSummary(group, key, tuple(content.shape), str(content.dtype).removeprefix("torch."))
    elif isinstance(content, Mapping) and depth < _DEEP:
        for name, value in content.items():
            inner = group if depth else (str(name) if isinstance(value, Mapping | list | tuple) else "")
            yield from tensors_in(value, shortened(inner), _joined(key, name) if depth else str(name), depth + 1)
    elif isinstance(content, list | tuple) and depth < _DEEP:
        for number, value in enumerate(content):
            yield from tensors_in(value, group, _joined(key, number), depth + 1)


def _joined(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def records(content: Any) -> dict[str, str]:
    """What lies at the top beside tensors."""
    if not isinstance(content, Mapping):
        return {"holds": f"a {type(content).__name__}"}
    found = {}
    for name, value in content.items():
        if any(True for _ in tensors_in(value)):
            continue
        found[f"record {shortened(str(name))}"] = shortened(_value_text(value))
    return found


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{len(value)} entries: {', '.join(map(str, list(value)[:8]))}"
    return str(value)


def shortened(text: str) -> str:
    """One line that a terminal can show: nothing in a file may move its cursor."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1] if not text.isprintable() else text
    plain = "".join(c if c.isprintable() else "?" for c in plain)
    return plain if len(plain) <= _TEXT else f"{plain[: _TEXT - 1]}…"
