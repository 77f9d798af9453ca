"""Text that people are shown (of files, headers, lists), with control characters escaped.

A file name or a header can hold an escape sequence that rewrites the terminal, a line break that forges a line of a
log, or a mark that turns the direction of the text. Whatever is printed passes here: `guarded` streams and
`console.Console` escape what is left in any text, `printable` makes one line of what should be one.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# Control characters, marks of direction, invisible characters and tags, separators of lines, halves of pairs.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_BUT_LINES = re.compile(rf"(?![\n\t]){_UNSAFE.pattern}")


def printable(text: str, lines: bool = False) -> str:
    r"""`text` with all that is not for the eye escaped: '\x1b[31m', '\n', '\u202e'; bytes that are no UTF-8 as '\xff'.

    lines: line breaks and tabs stay, in text of several lines of our own
    """
    return (_BUT_LINES if lines else _UNSAFE).sub(_escaped, text)


def printable_json(text: str) -> str:
    """JSON that says the same in characters that are for the eye, for lists that people read too."""
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape" if code < 0xD800 or code > 0xDFFF else "ascii", "backslashreplace").decode()


class _Guarded:
    """A stream for people: everything that is written to it is printable; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # rich writes its colours to it; what it prints has passed `console.Console`

    def write(self, text: str) -> int:
        """Write it, escaped."""
        self.rich_proxied_file.write(printable(text, lines=True))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them, escaped."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guard_stand_ins() -> None:
    """Guard what a progress bar has put in the place of guarded streams: it would take colours and links from text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Guarded) and isinstance(getattr(stream, "rich_proxied_file", None), _Guarded):
            setattr(sys, name, _Guarded(stream))


@contextmanager
def guarded() -> Iterator[None]:
    """Until the context ends, nothing that this process prints, ours or a library's, commands the terminal."""
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if stream is not None and not isinstance(stream, _Guarded):  # None: it was closed before the start
            setattr(sys, name, _Guarded(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
