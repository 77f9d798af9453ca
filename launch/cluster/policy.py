"""What follows when a life of a job ends: another one, or the end. Pure: no files, no scheduler."""

from dataclasses import dataclass
from typing import Literal

from scanfoundry.launch.cluster.job_folder import EXIT, End, JobRecord, Kind

SIGNAL_EXITS = {128 + number for number in (10, 12, 15)}  # USR1, USR2, TERM before the task could listen
HUNG = 128 + 14  # ALRM: pretrain/distributed/watchdog.py
# Of ranks that differ: the cause before what follows from it.
ORDER: tuple[Kind, ...] = ("final", "interrupted", "unreachable", "crashed", "stopped", "complete")
BROKEN = ("crashed", "unreachable")  # lives that are bounded by `max_crash_requeues`
AWAY_S = (60, 300, 1200)  # seconds before the first, second, third start after storage was away; servers take minutes


@dataclass(frozen=True)
class Verdict:
    """What to do, the sentence for the log, and the exit code if it is the end; `wait_s` before the next start."""

    action: Literal["requeue", "end"]
    reason: str
    code: int = 0
    wait_s: int = 0


def combine_ends(ends: dict[int, dict[str, str]], tasks: int, code: int, cancelled: bool, step: int) -> End:
    """One end of a life, from what its ranks wrote about theirs and all exit codes; a killed one wrote nothing."""
    reasons: dict[str, str] = {}
    for end in ends.values():
        reasons.setdefault(end["kind"], end["reason"])
    kind: Kind | None = next((kind for kind in ORDER if kind in reasons), None)
    if kind in ("final", "interrupted"):
        return End(kind, step, reasons[kind])
    if kind == "complete" and len(ends) == tasks and code == 0:
        return End("complete", step)
    if cancelled:
        return End("cancelled", step, "cancelled by `scanfoundry launch cancel`")
    if kind in BROKEN:
        return End(kind, step, reasons[kind] + _ranks_without_word(ends, tasks))
    if kind == "stopped":
        return End("stopped", step, reasons["stopped"])
    if code == EXIT["final"] and not ends:
        return End("final", step, "a mistake, or a disk too full to write it down; the log may say more")
    if code == HUNG:
        return End("crashed", step, "a rank finished no step in time (step_timeout_s); its stacks are in the log")
    if code in SIGNAL_EXITS:
        return End("stopped", step, f"told to stop by signal {code - 128} before it could save")
    what = f"killed by signal {code - 128}, as the system does when memory runs out" if code > 128 else f"exit {code}"
    return End("crashed", step, f"a rank was lost ({what})")


def _ranks_without_word(ends: dict[int, dict[str, str]], tasks: int) -> str:
    """The ranks without a last word: whom the others lost, or who were ended after them."""
    missing = [str(rank) for rank in range(tasks) if rank not in ends]
    if not missing:
        return ""
    which = ", ".join(missing) if len(missing) <= 8 else f"{len(missing)} of {tasks}"
    return f"; killed without a word: rank {which}"


def decide(past: list[End], end: End, facts: JobRecord) -> Verdict:
    """The verdict on a life that ended as `end`, after the lives `past`."""
    if end.kind == "complete":
        return Verdict("end", "complete")
    if end.kind in ("final", "interrupted", "cancelled"):
        code = {"final": 2, "interrupted": 130, "cancelled": 0}[end.kind]
        return Verdict("end", f"not started again: {end.reason or end.kind}", code)
    stuck = []
    for one in reversed(past):
        if one.step != end.step:
            break
        stuck.append(one.kind)
    where = f"step {end.step}" if end.step else "no checkpoint at all"
    broken = sum(kind in BROKEN for kind in stuck)
    if end.kind in BROKEN and broken >= facts.max_crash_requeues:
        lost = broken + 1
        return Verdict("end", f"not started again: ended {lost} times with its newest checkpoint at {where}, "
                              f"the last time because {end.reason}", 1)  # fmt: skip
    if len(stuck) >= facts.max_requeues:
        return Verdict("end", f"not started again: {len(stuck) + 1} starts in a row came to no new checkpoint "
                              f"({where}); give it more time, or lower checkpoint_every", 1)  # fmt: skip
    wait_s = AWAY_S[min(stuck.count("unreachable"), len(AWAY_S) - 1)] if end.kind == "unreachable" else 0
    when = f" in {wait_s // 60} minutes" if wait_s > 60 else " in a minute" if wait_s else ""
    return Verdict("requeue", f"{end.reason or end.kind}; to be continued from {where}{when}", wait_s=wait_s)
