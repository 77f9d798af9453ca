"""The table of numbers in a model card: from a study's results, or from a file that the user gives."""

import json
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.export.escaping import for_markdown


def table_of_run(folder: Path) -> list[str]:
    """Lines of Markdown from `results.json` of a fine-tuning; empty where the run has none.

    Only means and intervals are taken: the file's records are of single patients.
    """
    path = folder / "results.json"
    if not path.is_file():
        return []
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        names = results.get("overview") or list(results["table"][0]["metrics"])
        rows = [_row(row, names) for row in results["table"]]
        warnings = [f"- {_cell(warning)}" for warning in results["warnings"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as results ({error!r}); give --metrics FILE instead") from error
    head = ["| arm | labelled cases | " + " | ".join(map(_cell, names)) + " |", "|---" * (2 + len(names)) + "|"]
    test = results["data"].get("test_patients")
    lines = [*head, *rows, "", f"Mean and 95% bootstrap interval over {test} test patients."]
    return [*lines, *(["", "To read them:", *warnings] if warnings else [])]


def table_of_file(path: Path) -> list[str]:
    """Lines of Markdown from a JSON file: an object of names and numbers or texts, or of tables of those."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"--metrics {path} is not readable JSON ({error}); give an object of names and numbers"
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(f'--metrics {path} must be an object of names and numbers, e.g. {{"Dice": 0.83}}')
    lines = ["| metric | value |", "|---|---|"]
    for name, value in content.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for part, number in inner:
            if isinstance(number, dict | list) or number is None:
                raise UserError(f"--metrics {path}: '{name}' must be a number, a text, or an object of those")
            lines.append(f"| {_cell(f'{name} {part}'.strip())} | {_cell(number)} |")
    return lines


def _row(row: dict[str, Any], names: list[str]) -> str:
    values = [_interval(row["metrics"][name]) for name in names]
    return f"| {_cell(row['arm'])} | {_cell(row['shots'])} | " + " | ".join(values) + " |"


def _interval(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "undefined"
    text = f"{metric['value']:.4f}"
    return text if metric["low"] is None else f"{text} [{metric['low']:.4f}, {metric['high']:.4f}]"


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return for_markdown(text)
