"""`scanfoundry data build` and `data check`: options in, lines and exit code out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scanfoundry.configs.console import Console
from scanfoundry.configs.errors import UserError, UserErrors
from scanfoundry.configs.extras import check_installed


def build_command(inputs: list[Path], out: Path, part: str | None = None, append: bool = False, **options: Any) -> None:
    """Build shards with a progress bar and print the summary."""
    check_installed("webdataset")
    from pydantic import ValidationError

    from scanfoundry.configs.parsing.checking import explain
    from scanfoundry.datasets.shards import build as builds
    from scanfoundry.datasets.shards.build import BuildOptions
    from scanfoundry.datasets.shards.build_plan import Part
    from scanfoundry.launch.build_summary import describe_build, describe_part

    columns = options.get("label_columns") or []  # --label-columns age,sex is two of them
    options["label_columns"] = [name for words in columns for name in words.split(",") if name.strip()]
    try:
        checked = BuildOptions(**{k: v for k, v in options.items() if v is not None})
    except ValidationError as error:
        found = [f"--{line.replace('_', '-', line.partition(':')[0].count('_'))}" for line in
                 explain(BuildOptions, error)]  # fmt: skip
        raise UserErrors("the options", found) if len(found) > 1 else UserError(found[0]) from error
    which = None if part is None else Part.of(part)
    if which is not None and append:
        raise UserError("--part and --append exclude each other: an append is one process tree")
    with _progress_bar() as progress:
        if which is not None:
            text = describe_part(builds.build_part(inputs, out, checked, which, progress))
        else:
            text = describe_build((builds.append if append else builds.build)(inputs, out, checked, progress))
    print(text)


def merge_command(folders: list[Path], out: Path | None, max_bad: float) -> None:
    """Merge the parts of a build and print the summary."""
    check_installed("webdataset")
    from scanfoundry.datasets.shards.merge import merge
    from scanfoundry.launch.build_summary import describe_build

    if out is None and len(folders) > 1:
        raise UserError("several folders of parts are merged into a new one: give it as --out")
    with _progress_bar() as progress:
        summary = merge(folders, out or folders[0], max_bad, progress)
    print(describe_build(summary))


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, and the function that moves it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("building", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def check_command(folder: Path, contact_sheet: Path | None) -> None:
    """Check shards and print what is there."""
    from scanfoundry.datasets.shards.check import check

    report = check(folder, contact_sheet or folder / "contact_sheet.png")
    print(
        f"{folder}: {report.scans} scans of {report.patients} patients in {report.shards} shards "
        f"({report.bytes / 2**20:.1f} MiB), all checksums right, {report.duplicates or 'no'} duplicates"
    )
    if report.near_duplicates is not None and report.near_duplicates.scans:
        print(
            f"  near-duplicates: {report.near_duplicates.scans}, {report.near_duplicates.others} of another patient's "
            f"scan (near_duplicates.csv; data.sources.0.near_duplicates=drop leaves them out of a pre-training)"
        )
    for name, one in report.modalities.items():
        shape = " x ".join(_range(*each) for each in one.shape)
        spacing = " x ".join(_range(*each) for each in one.spacing)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(one.dtypes.items()))
        print(f"  {name}: {one.scans} scans ({kinds}), {shape} voxels of {spacing} mm, {_range(*one.intensity)}")
        print(f"    spacing in plane: {_histogram(one.in_plane)}")
        if any(one.between):
            print(f"    between slices:   {_histogram(one.between)}")
    for title, counts in (("labels", report.labels), ("look at", report.warnings)):
        if any(counts.values()):
            print(f"  {title}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count))
    print(f"  contact sheet: {report.contact_sheet}")


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _histogram(counts: list[int]) -> str:
    from scanfoundry.datasets.shards.summary import SPACING_BINS

    names = [f"up to {edge:g} mm" for edge in SPACING_BINS] + [f"above {SPACING_BINS[-1]:g} mm"]
    return ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True) if count)
