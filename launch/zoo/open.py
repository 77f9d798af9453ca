"""The tensors and records in any weight file. A file whose pickle holds code is refused, and the code named."""

import io
import pickletools
import warnings
from collections import Counter
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.launch.zoo.contents import FileContents, TensorSummary, records, shortened, tensors_in
from scanfoundry.launch.zoo.pickles import (
    MOST_PICKLED,
    pickle_imports,
    torch_zip_imports,
    unneeded_imports,
    with_bounded_lines,
)

_OLD = 5  # pickles: magic number, version, system, content, keys of storages
_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER


def contents_of(path: Path) -> FileContents:
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
    from scanfoundry.backbones.foreign.safe import read_foreign

    read_foreign(path)  # says what the file seems to be
    raise AssertionError("a file of no known kind was read")


def _safetensors(path: Path) -> FileContents:
    from safetensors import SafetensorError, safe_open

    from scanfoundry.backbones.foreign.safe import check_header_length

    check_header_length(path, path)
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            tensors = [TensorSummary("", key, tuple(s.get_shape()), str(s.get_dtype())) for key, s in slices.items()]
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or truncated ({shortened(str(error))}): download it again") from error
    return FileContents(
        "safetensors", tensors, {f"metadata {key}": shortened(value) for key, value in metadata.items()}
    )


def _torch_zip(path: Path) -> FileContents:
    from scanfoundry.backbones.foreign.safe import ALLOWED, read_foreign

    try:
        names = torch_zip_imports(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged: its pickle cannot be read ({error}); download it again") from error
    _refuse(path, unneeded_imports(names, set(ALLOWED)))
    content = read_foreign(path)
    return FileContents("torch file (zip)", list(tensors_in(content)), records(content))


def _pickle(path: Path) -> FileContents:
    """A torch file from before torch 1.6, which is a row of pickles, or any other pickle."""
    import torch

    from scanfoundry.backbones.foreign.bounded import check_unfolded_size
    from scanfoundry.backbones.foreign.safe import ALLOWED, DTYPES

    try:
        with path.open("rb") as stream:
            names = pickle_imports(stream)
    except ValueError as error:
        raise UserError(f"{path} is neither a safetensors nor a torch file, nor a whole pickle ({error})") from error
    _refuse(path, unneeded_imports(names, set(ALLOWED)))
    imports = ", ".join(names) or "nothing"
    if not _is_old_torch(path):
        return FileContents("a pickle that is no torch file; nothing in it was run", [], _counted(path, imports))
    try:
        _check_cost(path)
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([*((value, name) for name, value in ALLOWED.items()), *DTYPES]),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
        check_unfolded_size(content)
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path} is damaged, or refused as unsafe ({shortened(str(error))})") from error
    kind = "torch file from before torch 1.6 (plain pickles)"
    return FileContents(kind, list(tensors_in(content)), {"imports": imports, **records(content)})


def _check_cost(path: Path) -> None:
    """`bounded.Unbounded` where one of the pickles that an old torch file begins with would cost more than weights."""
    from scanfoundry.backbones.foreign.bounded import check_bounded

    with path.open("rb") as stream:
        for _ in range(_OLD):
            check_bounded(stream, path.stat().st_size, lambda key: None)


def _imports_something(path: Path) -> bool:
    """Whether the file is a pickle of the oldest protocols, which begin with no mark, and holds code."""
    try:
        with path.open("rb") as stream:
            return bool(pickle_imports(io.BytesIO(stream.read(MOST_PICKLED))))
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
        return any(argument == _MAGIC for _, argument, _ in pickletools.genops(with_bounded_lines(stream)))


def _counted(path: Path, imports: str) -> dict[str, str]:
    with path.open("rb") as stream:
        kinds: Counter[str] = Counter()
        texts: list[str] = []
        for _, argument, _ in pickletools.genops(with_bounded_lines(stream)):
            kinds[type(argument).__name__] += argument is not None
            if isinstance(argument, str) and len(texts) < 8:
                texts.append(shortened(argument))
    counts = ", ".join(f"{count} {name}" for name, count in kinds.items() if count)
    return {"imports": imports, "holds": counts or "nothing", "first texts": ", ".join(texts) or "none"}
