"""`scanforge data build` and `data check`: options in, lines and exit code out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scanforge.configs.errors import UserError

if TYPE_CHECKING:
    from scanforge.datasets.shards.build import BuildSummary


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
    print(describe_build(summary))


def check_command(folder: Path, contact_sheet: Path | None) -> None:
    """Check shards and print what is there."""
    from scanforge.datasets.shards.check import check

    report = check(folder, contact_sheet or folder / "contact_sheet.png")
    print(
        f"{folder}: {report.scans} scans of {report.patients} patients in {report.shards} shards, all checksums right"
    )
    for name, one in sorted(report.modalities.items()):
        shapes, spacings = (" to ".join(str(tuple(edge)) for edge in edges) for edges in (one.shape, one.spacing))
        low, high = one.intensity
        print(f"  {name}: {one.scans} scans, shape {shapes}, spacing {spacings} mm, intensity {low:g} to {high:g}")
    print(f"  contact sheet: {report.contact_sheet}")


def describe_build(summary: "BuildSummary") -> str:
    """One line for people: what came in, what was stored, what could not be read."""
    text = (
        f"{summary.out}: {summary.scans} scans of {summary.patients} patients from {summary.files} files "
        f"in {summary.shards} shards ({summary.bytes / 2**20:.1f} MiB)"
    )
    if summary.resumed_shards:
        text += f"; {summary.resumed_shards} shards were there already"
    if summary.quarantined:
        text += f"; {summary.quarantined} files could not be read, see {summary.out / 'quarantine.jsonl'}"
    if summary.ignored:
        text += "; ignored " + ", ".join(f"{count} {suffix}" for suffix, count in sorted(summary.ignored.items()))
    return text
