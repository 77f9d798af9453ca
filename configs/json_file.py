"""Reading JSON files that a person has written."""

import json
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError


def load_json(path: Path, what: str = "") -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        what: what the file is, for messages: 'the split '.

    Raises:
        UserError: the file cannot be read, is no JSON, or an object in it has one key twice, of which the first would
            be lost.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot read {what}{path}: {' '.join(why.split())}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        doubled = next(key for key in found if sum(name == key for name, _ in pairs) > 1)
        raise ValueError(f"the key '{doubled}' stands twice in one object")
    return found
