"""A run that is killed and started again, beside one that is left alone, as real processes of the command line."""

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

from gpus.cases import MAE_SMALL, NARROW
from gpus.commands import finish, override, start
from gpus.data import volumes
from gpus.parts import Refused, Row, Setting

STRAIGHT, KILLED = "run_straight", "run_killed"
# Losses after the resume, relative to those of the run that was left alone. Kernels of a GPU add in any order: there
# ten times what the two runs differ by before the kill is allowed too, since differences grow with the steps.
TOLERANCE, TIMES_BEFORE = {"cpu": 0.0, "cuda": 1e-3}, {"cpu": 0, "cuda": 10}
BEYOND = 2  # steps behind a checkpoint that are done before the kill, so that it has something to repeat
POLL_S = 0.01


def resume_row(setting: Setting) -> Row:
    """Both runs begin at the same time; one is killed (SIGKILL) behind a checkpoint and started again.

    Raises:
        Refused: the losses after the resume differ by more than is allowed, or the kill came too late.
    """
    folders = [setting.work / name for name in (STRAIGHT, KILLED)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    commands = [words(setting, folder) for folder in folders]
    logs = [setting.work / f"{folder.name}.log" for folder in folders]
    straight, killed = (start(each, log, setting.device) for each, log in zip(commands, logs, strict=True))
    try:
        kill(killed, folders[1], logs[1])
        before, saved = losses(folders[1]), newest_checkpoint(folders[1]) or 0
        again = time.perf_counter()
        resumed = start(commands[1], logs[1], setting.device)
        finish(resumed, logs[1])
        again = time.perf_counter() - again
        finish(straight, logs[0])
    finally:
        for process in (straight, killed):
            process.kill()
    alone, after = (losses(folder) for folder in folders)
    row = compare(alone, before, after, saved)
    row |= {"seconds": round(time.perf_counter() - began, 1), "seconds_resumed": round(again, 1)}
    allowed = max(TOLERANCE[setting.device], TIMES_BEFORE[setting.device] * row["apart_before"])
    if len(after) != len(alone) or row["apart_after"] > allowed:
        raise Refused(f"{len(after)} of {len(alone)} losses, {row['apart_after']:.2g} apart after the resume: {row}")
    return row


def words(setting: Setting, folder: Path) -> list[object]:
    """The command of one of the runs: SparK on STU-Net-B, 128^3, with kernels that are the same at every start."""
    steps, every = (30, 6) if setting.small else (90, 30)
    small = (*MAE_SMALL, *NARROW) if setting.small else ()
    return [
        "pretrain", "cluster_spark_volumes", "backbone.size=B", "engine.accumulation=1", "data.batch_3d=4",
        *small, override("data.sources", [{"name": "volumes", "path": str(volumes(setting.work, setting.small))}]),
        f"run_dir={folder}", f"steps={steps}", f"checkpoint_every={every}", "optimiser.warmup_steps=4",
        "engine.autotune=false", "data.holdout=0", "picture_every=0", "monitor_crops=0", f"device={setting.device}",
        f"data.workers={0 if setting.small else 4}", override("threads", setting.threads),
    ]  # fmt: skip


def kill(process: "Popen[bytes]", folder: Path, log: Path) -> None:
    """SIGKILL some steps behind a checkpoint.

    Raises:
        Refused: the run ended before.
    """
    while True:
        found = newest_checkpoint(folder)
        if found is not None and len(losses(folder)) >= found + BEYOND:
            break
        if process.poll() is not None:
            finish(process, log)
            raise Refused("the run ended before it could be killed")
        time.sleep(POLL_S)
    process.send_signal(signal.SIGKILL)
    if process.wait() == 0:
        raise Refused("the run ended before it could be killed")


def newest_checkpoint(folder: Path) -> int | None:
    """The step of the newest checkpoint that is sealed."""
    sealed = sorted((folder / "checkpoints").glob("step-*/complete.json"))
    return int(sealed[-1].parent.name.partition("-")[2]) if sealed else None


def losses(folder: Path) -> list[float]:
    """Of the steps that a run has logged; a line that is half written does not count."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)["loss"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def compare(alone: Sequence[float], before: Sequence[float], after: Sequence[float], saved: int) -> dict[str, Any]:
    """Losses of the run that was left alone, and of the other until it was killed and as it is at the end.

    Args:
        alone: of the one.
        before: of the other, until the kill.
        after: of the other, from the first step to the last.
        saved: the step that it went on from.
    """
    return {
        "steps": len(alone),
        "killed_after": len(before),
        "resumed_from": saved,
        "equal_before": list(before) == list(alone[: len(before)]),
        "equal_after": list(after) == list(alone),
        "apart_before": apart(alone, before),
        "apart_after": apart(alone[saved:], after[saved:]),
        "loss": [round(alone[0], 4), round(alone[-1], 4)],
    }


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference of losses; of which there are more, the others do not count."""
    return max((abs(a - b) / max(abs(a), 1e-12) for a, b in zip(one, other, strict=False)), default=0.0)
