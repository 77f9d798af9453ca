"""`key=a,b,c`: every combination of the values is a run of its own, in a folder named after what makes it differ."""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_text

FILE = "sweep.json"
OPEN, CLOSE = "[{(", "]})"
LONGEST = 100  # characters of a folder's name


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: the name of its folder, and the words that make it."""

    name: str
    words: tuple[str, ...]


def split(text: str) -> list[str]:
    """`text` at its top-level commas; brackets and quotes protect what is inside."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and not parts[-1].strip():
            quote = sign  # a quote inside a word is an apostrophe
        elif sign in OPEN:
            depth += 1
        elif sign in CLOSE:
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += sign
    return [part.strip() for part in parts]


def expand(words: list[str]) -> list[SweepRun]:
    """The Cartesian product of all words with several values.

    Returns:
        The runs; without any word of several values, one run without a name.

    Raises:
        UserError: a value is empty or repeated, a key is swept over twice, or `run_dir` is swept over.
    """
    choices: list[list[tuple[str, str]]] = []
    for word in words:
        key, equals, text = word.partition("=")
        values = split(text) if equals else []
        if len(values) < 2:
            choices.append([(key, word)])
            continue
        if key == "run_dir":
            raise UserError("run_dir cannot be swept over; each run of a sweep gets a folder below it")
        if "" in values or len(set(values)) < len(values):
            raise UserError(f"'{word}' has an empty or repeated value; put quotes around a text with commas")
        choices.append([(key, f"{key}={value}") for value in values])
    swept = [options[0][0] for options in choices if len(options) > 1]
    if len(set(swept)) < len(swept):
        raise UserError(f"'{max(swept, key=swept.count)}' is swept over twice")
    short = _short(swept)
    members = []
    for combination in itertools.product(*choices):
        parts = [(key, word.partition("=")[2]) for key, word in combination if key in short]
        name = _name([f"{short[key]}={value}" for key, value in parts])
        members.append(SweepRun(name, tuple(word for _, word in combination)))
    return members


def write(parent: Path, members: list[SweepRun]) -> None:
    """Write sweep.json: the runs and what each was given. Runs of an earlier submission stay listed."""
    listed = {name: list(words) for name, words in runs(parent).items()}
    listed |= {member.name: list(member.words) for member in members}
    content = {"runs": [{"name": name, "words": words} for name, words in listed.items()]}
    write_text(parent / FILE, json.dumps(content, indent=1) + "\n")


def runs(parent: Path) -> dict[str, list[str]]:
    """The runs of the sweep in `parent` by name; empty where there is none."""
    path = parent / FILE
    if not path.exists():
        return {}
    try:
        return {one["name"]: one["words"] for one in json.loads(path.read_text())["runs"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a sweep's list ({error}); restore it or name one of its runs") from error


def _short(keys: list[str]) -> dict[str, str]:
    """The shortest endings of dotted keys that tell them apart."""
    found = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            ending = ".".join(parts[-length:])
            if sum(f".{other}".endswith(f".{ending}") for other in keys) == 1:
                break
        found[key] = ending
    return found


def _name(parts: list[str]) -> str:
    text = "_".join(parts)
    clean = re.sub(r"[^A-Za-z0-9.=+_-]+", "-", text).strip("-")
    if clean == text and len(text) <= LONGEST:
        return clean
    # Two texts may look alike once their signs are replaced.
    return f"{clean[: LONGEST - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
