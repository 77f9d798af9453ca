"""YAML of plain values, read at a bounded cost."""

from typing import Any

import yaml

LONGEST = 1 << 22  # characters of a configuration
DEEPEST = 50  # levels in one
MOST = 100_000  # values in one, where its aliases are written out


def plain_yaml(text: str) -> Any:
    """What YAML says, in plain values. ValueError, in any wording, for what is none or would cost more than it says.

    Aliases may name a part again, but not until it unfolds without end (a, b: [*a, *a], c: [*b, *b] ...).
    """
    if len(text) > LONGEST:
        raise ValueError(f"more than {LONGEST} characters")
    try:
        content = yaml.safe_load(text)
        places = _places(content, 0)
    except RecursionError:
        raise ValueError("it is nested too deeply, or contains itself") from None
    except MemoryError:
        raise
    except Exception as error:  # of a value such as 2024-99-99 or !!int x, whatever the parser stumbles over
        raise ValueError(str(error) or type(error).__name__) from error
    if places > MOST:
        raise ValueError(f"its aliases unfold to more than {MOST} values")
    return content


def _places(value: Any, level: int) -> int:
    """How many values there are, one that is named again counted again; more than `MOST` where it is too many."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if level > DEEPEST:
        raise RecursionError
    total = 1
    for part in inner:
        total += _places(part, level + 1)
        if total > MOST:
            break
    return total
