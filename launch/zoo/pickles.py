"""What a pickle would import, read from its opcodes: nothing is unpickled, nothing is run."""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

MOST, MOST_PICKLED = 5_000_000, 1 << 26  # steps and bytes of a pickle that is looked at, as in foreign/bounded.py
COMPUTED = "a name that it computes"
_PLAIN = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_KEEP = {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_LINE = 1 << 16  # bytes of a name

# What torch's own restricted unpickler rebuilds tensors and plain containers with.
_HARMLESS = re.compile(
    r"torch\.(Size|Tensor|device|dtype|\w+Storage|storage\.(Untyped|Typed)Storage|nn\.parameter\.Parameter"
    r"|(u?int|float|bfloat|complex|bool|double|half|long|short|q\w*int)\w*"
    r"|_utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|sparse_tensor)"
    r"|_tensor\._rebuild_from_type_v2|serialization\._get_layout)"
    r"|collections\.(OrderedDict|Counter|defaultdict)|(builtins|__builtin__)\.(set|frozenset|bytearray|bytes|complex)"
)


class _BoundedLines:
    def __init__(self, stream: IO[bytes]) -> None:
        self.read, self.tell = stream.read, stream.tell
        self._readline = stream.readline

    def readline(self) -> bytes:
        """A line, or the first of its bytes, which pickletools refuses."""
        return self._readline(_LINE)


def with_bounded_lines(stream: IO[bytes]) -> IO[bytes]:
    """For pickletools, a stream whose lines end: a file without a line's end would else be one, whole in memory."""
    return cast(IO[bytes], _BoundedLines(stream))


def pickle_imports(stream: IO[bytes]) -> list[str]:
    """The names that the pickles in a file, one after the other, would import, in order of appearance.

    ValueError where it does not begin with a pickle. What follows the last one is not looked at.
    """
    found: dict[str, None] = {}
    first = True
    while first or _begins(stream):
        try:
            found |= dict.fromkeys(list(_imports_of_one_pickle(stream)))
        except Exception as error:  # a damaged pickle can fail in any way
            if first:
                raise ValueError(" ".join(str(error).split())[:160] or type(error).__name__) from error
            break  # the numbers behind the pickles of an old torch file
        first = False
    return list(found)


def _begins(stream: IO[bytes]) -> bool:
    """Whether another pickle of protocol 2 or later follows."""
    here = stream.tell()
    head = stream.read(1)
    stream.seek(here)
    return head == b"\x80"


def _imports_of_one_pickle(stream: IO[bytes]) -> Iterator[str]:
    """The names of one pickle; the stream stands behind it then."""
    strings: list[str | None] = []  # what was pushed, with nothing but memos between
    memo: dict[int, str | None] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(with_bounded_lines(stream))):
        if number > MOST:
            raise ValueError(f"more than {MOST} steps")
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
            strings.clear()
        elif name == "STACK_GLOBAL":
            module, attribute = strings[-2:] if len(strings) >= 2 else (None, None)
            yield f"{module}.{attribute}" if module and attribute else COMPUTED
            strings.clear()
        elif name in ("EXT1", "EXT2", "EXT4"):
            yield COMPUTED
            strings.clear()
        elif name in _PLAIN:
            strings.append(argument if isinstance(argument, str) else None)
        elif name in _GET:
            strings.append(memo.get(int(str(argument))))
        elif name in _KEEP:
            memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = strings[-1] if strings else None
        elif name != "FRAME":  # a frame may begin between a module and its name
            strings.clear()


def torch_zip_imports(path: Path) -> list[str]:
    """The same for the pickle of a torch file; empty where it has none that is stored plainly. ValueError as above."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                return []  # packed, or parts that lie on one another: refused unread by `read_foreign`
            infos = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            plain = [
                info for info in infos if info.compress_type == zipfile.ZIP_STORED and info.file_size <= MOST_PICKLED
            ]
            return [name for info in plain for name in pickle_imports(io.BytesIO(archive.read(info)))]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise ValueError(f"the archive is truncated or damaged ({error})") from error


def unneeded_imports(names: list[str], allowed: set[str]) -> list[str]:
    """The names that weights do not need."""
    return [name for name in names if name not in allowed and not _HARMLESS.fullmatch(name)]
