"""YAML of plain values, read at a bounded cost."""

from typing import Any

import yaml

LONGEST = 1 << 22  # characters of a configuration
DEEPEST = 50  # levels in one
MOST = 100_000  # values in one, where its aliases are written out


def plain_yaml(text: str) -> Any:
    """Parse YAML of plain values.

    Aliases may repeat a part, but not until it unfolds without end (a, b: [*a, *a], c: [*b, *b] ...). A key that stands
    twice in one mapping is an error, where the parser alone would silently keep the last one.

    Args:
        text: of the configuration.

    Raises:
        ValueError: the text is no such YAML, or would cost more than its length suggests.
    """
    if len(text) > LONGEST:
        raise ValueError(f"more than {LONGEST} characters")
    try:
        content = _content(text)
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


def _content(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_once(loader, node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_once(loader: yaml.SafeLoader, root: yaml.Node) -> None:
    """ValueError for a key that stands twice in one mapping; what `<<` brings may be said again.

    It looks at what is written, before `<<` is replaced by what it brings. 1, 1.0 and true are one key, as in Python.
    """
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        lines: dict[Any, int] = {}
        for key, value in node.value:
            waiting.append(value)
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = loader.construct_object(key), key.start_mark.line + 1
            if name in lines:
                where = f"lines {lines[name]} and {line}" if lines[name] != line else f"line {line}"
                raise ValueError(f"'{key.value}' stands twice in one mapping ({where}); keep one of them")
            lines[name] = line


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
