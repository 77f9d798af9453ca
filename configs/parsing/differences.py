"""The first difference between two configurations, for a message."""

from typing import Any

Difference = tuple[str, Any, Any]  # key ('data.images'), value before, value now


def first_difference(before: Any, now: Any, key: str = "") -> Difference | None:
    """The first key, deepest first, whose values differ.

    Args:
        before: one configuration.
        now: the other. A key that one of them lacks counts as None.
        key: where both lie in a larger configuration.

    Returns:
        (key, value before, value now); None where they are equal.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            found = first_difference(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
            if found is not None:
                return found
        return None
    if _sections(before) and _sections(now) and len(before) == len(now):
        for number, (one, other) in enumerate(zip(before, now, strict=True)):
            found = first_difference(one, other, f"{key}.{number}")
            if found is not None:
                return found
        return None
    return None if before == now else (key, _plain(before), _plain(now))


def _sections(value: Any) -> bool:
    """Whether a value is a list of sections, such as `data.sources`, whose keys can be named by number."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _plain(value: Any) -> Any:
    """As it is written in YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value
