"""What unpickling a torch file would cost, from its opcodes: nothing is unpickled.

torch's restricted unpickler runs no code of the file's, but what it may call can be made to fill the memory (bytes
encoded again and again, `bytearray(10**12)`, one number seen as a terabyte) or the day (a key that is a tuple of
tuples of tuples, each twice). A pickle has no way to take a value out of a list, so the arguments of every call are
known here. Weights need few calls, and those with plain arguments.
"""

import math
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

MOST = 5_000_000  # steps of a pickle, places in what it holds
DEEPEST = 64
_REPEATED, _ROOM = 16, 1 << 26  # times the file's bytes, and bytes, that all tensors may have together
_DTYPE = re.compile(r"[<>|=]?[biufcSUmM?]\d{0,3}")
_ITEM = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
         "Bool": 1, "Untyped": 1, "ComplexDouble": 16, "ComplexFloat": 8}  # fmt: skip
_TENSORS = re.compile(r"torch\._utils\._rebuild_tensor(_v2|_v3)?")
_PLAIN = re.compile(
    r"collections\.(OrderedDict|Counter)|argparse\.Namespace|torch\.(Size|device|serialization\._get_layout)"
    r"|torch\._utils\._rebuild_(parameter|parameter_with_state|sparse_tensor)|builtins\.(set|complex)"
    r"|numpy\.(core|_core)\.multiarray\.scalar"
)
_STATEFUL = {"collections.OrderedDict", "collections.Counter", "argparse.Namespace", "numpy.dtype"}


class Unbounded(ValueError):
    """A pickle that would cost more than weights do."""


@dataclass(frozen=True)
class _Name:
    text: str


@dataclass(frozen=True)
class _Made:
    by: str


@dataclass
class _Box:
    """A list or a dictionary."""

    length: int = 0
    deep: bool = False  # holds a tuple of tuples


@dataclass(frozen=True)
class _Storage:
    item: int


class _Reader:
    """The stack of one pickle, with stand-ins for what would be on it."""

    def __init__(self, size: int, stored: Callable[[str], int | None]) -> None:
        self.size, self.stored = size, stored  # of the file; of one storage by its key, None where that is not known
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.keys: dict[str, int] = {}
        self.held = self.bytes = self.work = 0

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        stack = self.stack
        if name in _PUSHED:
            stack.append(_PUSHED[name](argument))
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name.startswith("TUPLE"):
            count = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}.get(name)
            items = self._marked() if count is None else [stack.pop() for _ in range(count)][::-1]
            self.stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            self._append([stack.pop()] if name == "APPEND" else self._marked())
        elif name in ("SETITEM", "SETITEMS"):
            items = self._marked() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            for key in items[::2]:
                _check_depth(key)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name == "BUILD":
            self._built(stack.pop(), stack[-1])
        elif name == "POP":
            stack.pop()
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Unbounded(f"its pickle uses {name}, which weights do not need")

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _append(self, items: list[Any]) -> None:
        box = self.stack[-1]
        if isinstance(box, _Box):
            box.length += len(items)
            box.deep = box.deep or any(_is_deep(item) for item in items)

    def _storage(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[1], _Name) and _is_count(pid[4])):
            raise Unbounded("its pickle refers to something that is no storage of numbers")
        kind, key = re.fullmatch(r"torch\.(?:storage\.)?(\w+?)Storage", pid[1].text), str(pid[2])
        item = _ITEM.get(kind[1], 1) if kind else 1
        stored = self.stored(key)
        before = self.keys.get(key, 0)
        self.keys[key] = max(before, pid[4] * item)
        self.held += self.keys[key] - before
        if self.held > self.size or (stored is not None and self.keys[key] > stored):
            raise Unbounded(f"a tensor of {pid[4]} numbers is declared, which the file does not hold")
        return _Storage(item)

    def _called(self, function: Any, arguments: Any) -> _Made:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise Unbounded("its pickle calls something that it computes")
        name = function.text
        self.work += sum(_length(argument) for argument in arguments)
        if self.work > MOST + 4 * self.size:
            raise Unbounded(f"its pickle makes {name} of the same values again and again")
        if _TENSORS.fullmatch(name):
            self._tensor(arguments)
        elif name == "torch._tensor._rebuild_from_type_v2":
            self._called(arguments[0], arguments[2])
        elif not _is_plain(name, arguments):
            raise Unbounded(f"its pickle calls {name} in a way that weights do not need")
        return _Made(name)

    def _tensor(self, arguments: tuple[Any, ...]) -> None:
        storage, _, shape = arguments[:3]
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not all(map(_is_count, shape)):
            raise Unbounded("its pickle makes a tensor of something that is no storage of numbers")
        self.bytes += math.prod(shape[:64]) * storage.item
        if len(shape) > 64 or self.bytes > _ROOM + _REPEATED * self.size:
            raise Unbounded(f"its tensors repeat their numbers until they take more than {self.bytes} bytes")

    def _built(self, state: Any, made: Any) -> None:
        known = made.by if isinstance(made, _Made) else ""
        numbers = [part for part in state if isinstance(part, int)] if isinstance(state, tuple) else []
        if known not in _STATEFUL or any(abs(number) > 4096 for number in numbers):
            raise Unbounded(f"its pickle gives {known or 'a value'} a state that weights do not need")


_PUSHED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), lambda _: _Box()),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1", "INT",
                     "FLOAT", "LONG", "SHORT_BINUNICODE", "BINSTRING"), lambda value: value),
    "NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False, "EMPTY_TUPLE": lambda _: (),
    "GLOBAL": lambda text: _Name(_present(*str(text).split(" ", 1))),
}  # fmt: skip


def _present(module: str, name: str = "") -> str:
    """The name that Python 3 has for one of any version, as torch reads it."""
    if (module, name) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, name])
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _is_plain(name: str, arguments: tuple[Any, ...]) -> bool:
    if name == "_codecs.encode":  # bytes in pickles of protocol 2
        return len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] in ("latin1", "latin-1")
    if name == "builtins.bytearray":
        return all(isinstance(argument, str | bytes | _Made) for argument in arguments)
    if name == "numpy.dtype":
        return bool(arguments) and isinstance(arguments[0], str) and _DTYPE.fullmatch(arguments[0]) is not None
    if name == "builtins.set":
        return all(isinstance(argument, _Box) and not argument.deep for argument in arguments)
    return _PLAIN.fullmatch(name) is not None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 62


def _length(value: Any) -> int:
    return value.length if isinstance(value, _Box) else len(value) if isinstance(value, str | bytes | tuple) else 1


def _is_deep(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(inner, tuple) for inner in value)


def _check_depth(key: Any) -> None:
    if _is_deep(key):
        raise Unbounded("its pickle has keys of tuples in tuples, which weights do not need")


def check_unfolded_size(content: Any) -> None:
    """Unbounded where what was unpickled goes in circles, nests without end, or shares its parts so that whoever walks
    through all of it passes more than `MOST` places."""
    unfolded: dict[int, int] = {}  # places in a container, itself counted, each time that one is met in it
    path: set[int] = set()
    todo: list[tuple[Any, bool]] = [(content, False)]
    while todo:
        value, done = todo.pop()
        inner = _inside(value)
        if inner is None or (not done and id(value) in unfolded):
            continue
        if done:
            path.discard(id(value))
            unfolded[id(value)] = 1 + sum(unfolded.get(id(part), 1) for part in inner)
            if unfolded[id(value)] > MOST:
                raise Unbounded("its records share their parts, so that they unfold without end")
            continue
        path.add(id(value))
        if len(path) > DEEPEST:
            raise Unbounded(f"its records are nested deeper than {DEEPEST} levels")
        todo.append((value, True))
        for part in inner:
            if id(part) in path and _inside(part) is not None:
                raise Unbounded("its records contain themselves")
            todo.append((part, False))


def _inside(value: Any) -> list[Any] | None:
    """What a container holds; None for anything else."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(vars(value).values()) if isinstance(value, Namespace) else None


def check_bounded(stream: IO[bytes], size: int, stored: Callable[[str], int | None]) -> None:
    """Unbounded where the pickle that begins here would cost more than weights of a file of `size` bytes do.

    Other exceptions of a damaged pickle pass. The stream stands behind the pickle then.

    Args:
        stored: bytes of a storage by its key; None where only the file's size bounds it.
    """
    reader = _Reader(size, stored)
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if number > MOST:
            raise Unbounded(f"its pickle has more than {MOST} steps")
        reader.step(opcode.name, argument)
