"""The tensors and records in any weight file. A file whose pickle holds code is refused, and the code named."""

import json
import math
import pickletools
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scanforge.configs.errors import UserError
from scanforge.launch.models.pickles import globals_of, in_torch_zip, suspicious

_TEXT = 120  # characters of a record that are shown
_DEEP = 12  # levels of nested records that are followed
_SAFETENSORS = "safetensors"
_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER


@dataclass(frozen=True)
class Tensor:
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
class Contents:
    """What a file holds."""

    kind: str
    tensors: list[Tensor]
    metadata: dict[str, str] = field(default_factory=dict)  # other records, shortened


def contents_of(path: Path) -> Contents:
    """Look into a file. UserError where it cannot be read, is damaged, is of no known kind, or holds code."""
    try:
        with path.open("rb") as stream:
            head = stream.read(1024)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith(b"PK"):
        return _torch_zip(path)
    if head[8:9] == b"{":
        return _safetensors(path)
    if head[:1] == b"\x80" or _imports_something(path):
        return _pickle(path)
    from scanforge.backbones.foreign.safe import read_foreign

    read_foreign(path)  # says what the file seems to be
    raise AssertionError("a file of no known kind was read")


def _safetensors(path: Path) -> Contents:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            tensors = [Tensor("", key, tuple(s.get_shape()), str(s.get_dtype())) for key, s in slices.items()]
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or truncated ({shortened(str(error))}): download it again") from error
    return Contents(_SAFETENSORS, tensors, {f"metadata {key}": shortened(value) for key, value in metadata.items()})


def _torch_zip(path: Path) -> Contents:
    from scanforge.backbones.foreign.safe import ALLOWED, read_foreign

    try:
        names = in_torch_zip(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged: its pickle cannot be read ({error}); download it again") from error
    _refuse(path, suspicious(names, set(ALLOWED)))
    content = read_foreign(path)
    return Contents("torch file (zip)", list(_walk(content)), _records(content))


def _pickle(path: Path) -> Contents:
    """A torch file from before torch 1.6, which is a row of pickles, or any other pickle."""
    import torch

    from scanforge.backbones.foreign.safe import ALLOWED, DTYPES

    try:
        with path.open("rb") as stream:
            names = globals_of(stream)
    except ValueError as error:
        raise UserError(f"{path} is neither a safetensors nor a torch file, nor a whole pickle ({error})") from error
    _refuse(path, suspicious(names, set(ALLOWED)))
    imports = ", ".join(names) or "nothing"
    if not _is_old_torch(path):
        return Contents("a pickle that is no torch file; nothing in it was run", [], _counted(path, imports))
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([*((value, name) for name, value in ALLOWED.items()), *DTYPES]),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path} is damaged, or refused as unsafe ({shortened(str(error))})") from error
    kind = "torch file from before torch 1.6 (plain pickles)"
    return Contents(kind, list(_walk(content)), {"imports": imports, **_records(content)})


def _imports_something(path: Path) -> bool:
    """Whether the file is a pickle of the oldest protocols, which begin with no mark, and holds code."""
    try:
        with path.open("rb") as stream:
            return bool(globals_of(stream))
    except ValueError:
        return False


def _refuse(path: Path, names: list[str]) -> None:
    if names:
        raise UserError(
            f"{path} refused: reading it would run {', '.join(shortened(name) for name in names)}, which weights do "
            "not need; nothing was run; have its author save the weights alone (state_dict, or safetensors)"
        )


def _is_old_torch(path: Path) -> bool:
    """Whether the first pickle is torch's magic number."""
    with path.open("rb") as stream:
        return any(argument == _MAGIC for _, argument, _ in pickletools.genops(stream))


def _counted(path: Path, imports: str) -> dict[str, str]:
    with path.open("rb") as stream:
        kinds: Counter[str] = Counter()
        texts: list[str] = []
        for _, argument, _ in pickletools.genops(stream):
            kinds[type(argument).__name__] += argument is not None
            if isinstance(argument, str) and len(texts) < 8:
                texts.append(shortened(argument))
    counts = ", ".join(f"{count} {name}" for name, count in kinds.items() if count)
    return {"imports": imports, "holds": counts or "nothing", "first texts": ", ".join(texts) or "none"}


def _walk(content: Any, group: str = "", key: str = "", depth: int = 0) -> Iterator[Tensor]:
    """Every tensor in nested dicts and sequences."""
    import torch

    if isinstance(content, torch.Tensor):
        yield Tensor(group, key, tuple(content.shape), str(content.dtype).removeprefix("torch."))
    elif isinstance(content, Mapping) and depth < _DEEP:
        for name, value in content.items():
            inner = group if depth else (str(name) if isinstance(value, Mapping | list | tuple) else "")
            yield from _walk(value, shortened(inner), _joined(key, name) if depth else str(name), depth + 1)
    elif isinstance(content, list | tuple) and depth < _DEEP:
        for number, value in enumerate(content):
            yield from _walk(value, group, _joined(key, number), depth + 1)


def _joined(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _records(content: Any) -> dict[str, str]:
    """What lies at the top beside tensors."""
    if not isinstance(content, Mapping):
        return {"holds": f"a {type(content).__name__}"}
    found = {}
    for name, value in content.items():
        if any(True for _ in _walk(value)):
            continue
        found[f"record {shortened(str(name))}"] = shortened(_said(value))
    return found


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{len(value)} entries: {', '.join(map(str, list(value)[:8]))}"
    return str(value)


def shortened(text: str) -> str:
    """One line that a terminal can show: nothing in a file may move its cursor."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1] if not text.isprintable() else text
    plain = "".join(c if c.isprintable() else "?" for c in plain)
    return plain if len(plain) <= _TEXT else f"{plain[: _TEXT - 1]}…"
