"""Text that somebody typed, such as a class's name, as the text that it is, in files that programs interpret."""

import re
from typing import Any

_CODE = re.compile(r"\s*[$@%]")  # at the start: an expression, a reference, a macro
_RELATIVE = re.compile(r"([@%])(?=#|::)")  # anywhere
_MARKS = re.compile(r"[\\`*\[\]<>|$]|^[#+=~-]")


def for_monai(value: Any) -> Any:
    """JSON content in which no string is code to MONAI's `ConfigParser`, which reads a bundle's files.

    A text that begins with `$`, `@` or `%` is put into quotes, so that people still read it; a mark of a relative
    reference is followed by a space.
    """
    if isinstance(value, dict):
        return {str(key): for_monai(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [for_monai(inner) for inner in value]
    if not isinstance(value, str):
        return value
    text = _RELATIVE.sub(r"\1 ", value)
    return f"'{text}'" if _CODE.match(text) else text


def for_markdown(value: Any) -> str:
    """A text as one line of Markdown that shows it: no heading, link, picture, HTML, table cell or fence of its own."""
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", " ".join(str(value).split()))
