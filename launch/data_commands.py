"""`scanforge data build` and `data check`: options in, lines and exit code out."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scanforge.configs.errors import UserError


def build_command(inputs: list[Path], out: Path, **options: Any) -> None:
    """Build shards with a progress bar and print the summary."""
    from pydantic import ValidationError

    from scanforge.datasets.shards.build import BuildOptions, build

    try:
        checked = BuildOptions(**{k: v for k, v in options.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{'-'.join(str(p) for p in first['loc']).replace('_', '-')}: {first['msg']}") from error
    console = Console(stderr=True)
    columns = (TextColumn("building"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("building", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        summary = build(inputs, out, checked, progress)
    print(summary)


def check_command(folder: Path, contact_sheet: Path | None) -> None:
    """Check shards and print what is there."""
    from scanforge.datasets.shards.check import check

    print(check(folder, contact_sheet or folder / "contact_sheet.png"))
