"""Parts one after the other within a time, each in the worker process: a part that fails or hangs stops no other."""

import time
from collections.abc import Callable
from importlib.util import find_spec

from gpus.parts import Outcome, Part, Setting
from gpus.worker import Worker

# How many times its seconds a part may take. A CPU's seconds are not those of the table.
PATIENCE = {"cuda": 2.0, "cpu": 40.0}
Report = Callable[[Part, Outcome, dict[str, Outcome]], None]


def run_parts(
    parts: list[Part],
    setting: Setting,
    table: Callable[[], list[Part]],
    total_s: float,
    report: Report,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Outcome]:
    """Run parts in their order.

    Args:
        parts: to run.
        setting: where.
        table: gives all parts, in the worker process; a function at the top of a module.
        total_s: seconds for all; a part of which the seconds no longer fit is left out, a shorter one may follow.
        report: told after each part: the part, what came of it, and what came of all until then.
        now: the clock.

    Returns:
        What came of each, by name.
    """
    began, found = now(), dict[str, Outcome]()
    with Worker(table, setting) as worker:
        for part in parts:
            left = total_s - (now() - began)
            outcome = left_out(part, left)
            if outcome is None:
                outcome = worker.run(part.name, min(left, PATIENCE[setting.device] * part.seconds))
            found[part.name] = outcome
            report(part, outcome, found)
    return found


def left_out(part: Part, left: float) -> Outcome | None:
    """Why a part is not begun with so many seconds left; None where it is."""
    missing = [name for name in part.needs if find_spec(name) is None]
    if missing:
        return Outcome("left out", f"needs {', '.join(missing)}")
    if part.seconds > left:
        return Outcome("left out", f"time: it may take {part.seconds:.0f} s, and {max(0, left):.0f} s were left")
    return None
