"""What a study writes to the console beside its progress."""

from collections.abc import Mapping

from scanfoundry.configs.console import Console
from scanfoundry.configs.text import printable
from scanfoundry.finetune.study.results import Results


def note_left_out(reasons: Mapping[str, int]) -> None:
    """One line with what takes no part in the study, counted by reason."""
    if reasons:
        counted = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        Console(stderr=True, highlight=False).print(f"note: left out: {counted}.", soft_wrap=True, markup=False)


def note(text: str) -> None:
    """A line that the user should know; nothing where there is no text."""
    if text:
        Console(stderr=True, highlight=False).print(f"note: {printable(text)}", soft_wrap=True, markup=False)


def note_results(results: Results) -> None:
    """The headline metric of every row of the table, then what a reader of the numbers must know."""
    console = Console(stderr=True, highlight=False, markup=False)  # class names may hold brackets
    for row in results.table:
        value = row.metrics[results.headline]
        interval = "" if value.low is None else f"  [{value.low:.3f}, {value.high:.3f}]"
        number = "undefined" if value.value is None else f"{value.value:.3f}"
        console.print(f"{row.arm:>10}  {row.shots!s:>4} shots  {results.headline} {number}{interval}")
    note_left_out(results.left_out)
    for warning in results.warnings:
        console.print(f"note: {printable(warning)}", soft_wrap=True)
