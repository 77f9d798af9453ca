"""What a study tells beside its progress."""

import logging
from collections.abc import Mapping

from scanfoundry.configs.text import printable
from scanfoundry.finetune.study.results import Results

log = logging.getLogger(__name__)


def note_left_out(reasons: Mapping[str, int]) -> None:
    """One line with what takes no part in the study, counted by reason."""
    if reasons:
        log.warning("note: left out: %s.", "; ".join(f"{count} {reason}" for reason, count in reasons.items()))


def note(text: str) -> None:
    """A line that the user should know; nothing where there is no text."""
    if text:
        log.warning("note: %s", printable(text))


def note_results(results: Results) -> None:
    """The headline metric of every row of the table, then what a reader of the numbers must know."""
    for row in results.table:
        value = row.metrics[results.headline]
        interval = "" if value.low is None else f"  [{value.low:.3f}, {value.high:.3f}]"
        number = "undefined" if value.value is None else f"{value.value:.3f}"
        log.info("%10s  %4s shots  %s %s%s", row.arm, row.shots, results.headline, number, interval)
    note_left_out(results.left_out)
    for warning in results.warnings:
        log.warning("note: %s", printable(warning))
