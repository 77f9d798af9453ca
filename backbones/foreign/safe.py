"""Opening weight files that others wrote, without running anything in them.

A torch file is a pickle, and unpickling can call any function it names. Here the names are listed first, without
unpickling, and held against torch's own safe list and `ALLOWED`; what it would cost is bounded (`bounded.py`); then
torch's restricted unpickler reads the file.
"""

import _codecs
import io
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file

from scanfoundry.backbones.foreign.bounded import Unbounded, check_bounded, check_unfolded_size
from scanfoundry.configs.errors import UserError

# What training records hold beside tensors: numpy scalars (nnU-Net v1's curves), argparse's options (MAE).
ALLOWED: dict[str, Any] = {
    "numpy.core.multiarray.scalar": scalar,  # as numpy before 2 names it
    "numpy._core.multiarray.scalar": scalar,
    "numpy.dtype": np.dtype,
    "_codecs.encode": _codecs.encode,  # bytes in pickles of protocol 2
    "argparse.Namespace": Namespace,
}
# Classes of the dtypes that `numpy.dtype` makes; torch asks for them when their byte order is set.
DTYPES = tuple(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))
AGAIN = "download it again"
MOST_LISTED = 1 << 23  # bytes of a safetensors file's list, some 80,000 tensors
MOST_PICKLED = 1 << 26  # bytes of a pickle inside a torch file: weights lie beside it


def read_foreign(path: Path, opened: Path | None = None) -> Any:
    """What a safetensors or torch file holds: nested dicts, lists, numbers and CPU tensors.

    Tensors of a torch file are mapped from disk: a momentum buffer that nobody looks at is never read.
    Raises UserError for what is no such file, is damaged, or needs anything outside `ALLOWED`.

    Args:
        opened: where to read it, where that is not `path` (see `files.opened_once`), which messages name.
    """
    try:
        with (opened or path).open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith(b"PK"):
        if path.suffix == ".safetensors":  # torch.load goes by the name
            raise UserError(f"{path} is a torch file, no safetensors: rename it to {path.with_suffix('.pth').name}")
        return _read_torch(path, opened or path)
    if head[8:9] == b"{":
        return _read_safetensors(path, opened or path)
    raise UserError(f"{path} {_what(head)}")


def _what(head: bytes) -> str:
    """What a file that is neither safetensors nor a torch zip seems to be, and what to do."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return f"is empty: {AGAIN}"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return f"is a web page, not weights (a login or quota page?): {AGAIN}, from a direct link"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights: run 'git lfs pull' or download the file itself"
    if head[:1] == b"\x80" or b"ustar" in head:
        return (
            "is a plain pickle or a torch file from before torch 1.6, which cannot be checked before it is read: "
            "have its author save it again with torch.save or as safetensors"
        )
    return f"is neither a safetensors nor a torch file: {AGAIN}, or give another file"


def check_header_length(path: Path, opened: Path) -> None:
    """UserError for a safetensors file that lists more tensors than any weights have; that alone takes minutes."""
    with opened.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if MOST_LISTED < length <= opened.stat().st_size:
        raise UserError(f"{path} refused: its list of tensors takes more than {MOST_LISTED} bytes; give other weights")


def _read_safetensors(path: Path, opened: Path) -> dict[str, torch.Tensor]:
    check_header_length(path, opened)
    try:
        return load_file(opened)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or truncated ({_line(error)}): {AGAIN}") from error


def _read_torch(path: Path, opened: Path) -> Any:
    _check_zip(path, opened)
    try:
        needed = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(opened)))
    except (RuntimeError, ValueError, EOFError, UnpicklingError, AssertionError) as error:
        raise UserError(f"{path} is no plain torch.save file of weights ({_line(error)}); give another file") from error
    if refused := sorted(needed - ALLOWED.keys()):
        raise UserError(
            f"{path} refused: reading it would run {', '.join(refused)}, which weights do not need; "
            "have its author save the weights alone (state_dict)"
        )
    allowed: list[Any] = [*((value, name) for name, value in ALLOWED.items()), *DTYPES]
    try:
        _check_cost(opened)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(allowed):
            content = torch.load(opened, map_location="cpu", weights_only=True, mmap=True)
        check_unfolded_size(content)
    except Unbounded as error:
        raise UserError(f"{path} refused: {error}; have its author save the weights alone (state_dict)") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path} is damaged, or refused as unsafe ({_line(error)}): {AGAIN}") from error
    return content


def _check_cost(opened: Path) -> None:
    """Unbounded where unpickling would take more memory or time than weights do."""
    with zipfile.ZipFile(opened) as archive:
        (pickled,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
        folder = pickled.filename.removesuffix("data.pkl") + "data/"
        sizes = {info.filename.removeprefix(folder): info.file_size for info in archive.infolist()}
        stream = io.BytesIO(archive.read(pickled))
        check_bounded(stream, opened.stat().st_size, lambda key: sizes.get(key, 0))


def _check_zip(path: Path, opened: Path) -> None:
    try:
        with zipfile.ZipFile(opened) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({_line(error)}): {AGAIN}") from error
    if not any(info.filename.endswith("/data.pkl") for info in infos):
        raise UserError(f"{path} is a zip archive but no torch file; unpack it and give the weights inside")
    names = [info.filename for info in infos]
    several = sum(name.endswith("/data.pkl") for name in names) > 1 or len(set(names)) < len(names)
    if several or sum(info.file_size for info in infos) > opened.stat().st_size:
        raise UserError(f"{path} is damaged: its parts lie on one another, or one is there twice; {AGAIN}")
    if any(info.filename.endswith("/data.pkl") and info.file_size > MOST_PICKLED for info in infos):
        raise UserError(f"{path} refused: its records take more than {MOST_PICKLED} bytes; give the weights alone")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):  # torch never compresses: no bombs
        raise UserError(f"{path} is a compressed archive, which torch.save does not write; give the original file")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:160]


def count_tensors(content: Any) -> int:
    """How many tensors lie anywhere in nested dicts and sequences."""
    if isinstance(content, torch.Tensor):
        return 1
    if isinstance(content, Mapping):
        return sum(count_tensors(value) for value in content.values())
    if isinstance(content, list | tuple | set):
        return sum(count_tensors(value) for value in content)
    return 0
