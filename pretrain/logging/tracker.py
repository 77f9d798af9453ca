"""Where a run's numbers go: `metrics.jsonl` always, wandb and TensorBoard if asked for, a bar or plain lines.

wandb runs in a process of its own that follows `metrics.jsonl`: a network that hangs, a server that refuses, a wandb
that dies or blocks its interpreter at exit cannot hold up a step, and what it has not sent it can read again.
"""

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from scanfoundry.pretrain.config.wandb import WandbConfig
from scanfoundry.pretrain.logging.display import Display
from scanfoundry.pretrain.logging.metrics_file import MetricsFile
from scanfoundry.pretrain.logging.tensorboard import TensorBoardFiles
from scanfoundry.pretrain.logging.wandb_process import WandbProcess, without_secrets

POLL_S = 0.5  # between looks at metrics.jsonl


class Tracker:
    """Metrics file, wandb, TensorBoard and display in one; on other ranks than the first it does nothing."""

    def __init__(self, run_dir: Path, config: WandbConfig, settings: dict[str, Any], resumed: int, steps: int,
                 active: bool, tensorboard: bool = False) -> None:  # fmt: skip
        self._active, self._run_dir = active, run_dir
        if not active:
            return
        path = run_dir / "metrics.jsonl"
        self._file = MetricsFile(path, resumed)
        self._display = Display(steps, resumed, "pre-training")
        self._wandb: WandbProcess | None = None
        if config.mode != "off":
            job = {
                "metrics": str(path), "settings": settings, "mode": config.mode,
                "run_dir": str(run_dir), **config.model_dump(include={"project", "name", "start_s", "finish_s"}),
            }  # fmt: skip
            self._wandb = WandbProcess(job, run_dir, self.info)
        self._tensorboard = TensorBoardFiles(run_dir, path, settings, self.info) if tensorboard else None

    def log(self, record: dict[str, Any], write: bool, picture: Path | None = None) -> None:
        """Show the record; store it, with the place of the picture in the run folder, where `write` says so."""
        if not self._active:
            return
        if write:
            shown = {} if picture is None else {"picture": str(picture.relative_to(self._run_dir))}
            self._file.write({**record, **shown})
        if self._wandb is not None:
            self._wandb.look()
        self._display.update(record["step"], f"loss {record['loss']:.4f}  {record['samples_per_second']:.1f} scans/s")

    def info(self, text: str) -> None:
        """Show one line to the user."""
        if self._active:
            self._display.info(text)

    def close(self) -> None:
        """Close all; waits for wandb, but not long."""
        if self._active:
            self._file.close()
            if self._wandb is not None:
                self._wandb.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
            self._display.close()


def follow(job: dict[str, Any], life: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Log every line of `metrics.jsonl` to wandb, from the first, until the run is over; the wandb process does this.

    So every offline segment is the whole run so far, and an online one sends what a killed one had not. It ends where
    wandb fails; the parent then starts another process offline.

    Args:
        job: the files, the settings and the mode.
        life: a pipe that becomes readable once `metrics.jsonl` is complete.
        tell: sends the parent one answer: ready, failed with a reason, or finished.
    """
    try:
        _follow(job, life, tell)
    except BaseException as error:  # wandb turns some errors into SystemExit
        tell({"failed": without_secrets(str(error) or type(error).__name__)})


def _follow(job: dict[str, Any], life: int, tell: Callable[[dict[str, Any]], None]) -> None:
    parent = os.getppid()
    run = _started(job, parent)
    tell({"ready": job["mode"]})
    with open(job["metrics"], "rb") as lines:
        last = False
        while not last:
            last = bool(select.select([life], [], [], POLL_S)[0]) or os.getppid() != parent
            _send(run, lines, Path(job["run_dir"]))
    signal.alarm(round(job["finish_s"]) + 5)  # ends a process that is stuck, where its parent was killed too
    run.finish()
    tell({"finished": True})


def _started(job: dict[str, Any], parent: int) -> Any:
    import wandb

    # Numbers leave the site, not where they come from: no host, no command line, no paths, no user, no git, no code.
    settings = wandb.Settings(
        silent=True, console="off", init_timeout=job["start_s"], disable_git=True, save_code=False, x_stats_pid=parent,
        host="", program="scanfoundry", x_disable_meta=True, disable_code=True, disable_job_creation=True,
    )  # fmt: skip
    return wandb.init(
        project=job["project"], name=job["name"], id=job["id"], resume="allow", mode=job["mode"], dir=job["run_dir"],
        config=job["settings"], settings=settings,
    )  # fmt: skip


def _send(run: Any, lines: BinaryIO, run_dir: Path) -> None:
    """Log what has come since, line by line, but not the steps that a server has from before a kill."""
    import wandb

    while (line := lines.readline()).endswith(b"\n"):
        record = {key: value for key, value in json.loads(line).items() if value is not None}
        if record["step"] < run.starting_step:
            continue
        if "picture" in record:
            record["reconstruction"] = wandb.Image(str(run_dir / record.pop("picture")))
        run.log(record, step=record["step"])
    lines.seek(-len(line), os.SEEK_CUR)  # a line that is being written


def main() -> None:
    """`python -m scanfoundry.pretrain.logging.tracker`: a job from standard input, answers to standard output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # wandb talks; what it says is for no terminal, and may hold an address with a password
        os.dup2(silence, descriptor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # they are meant for the run
        signal.signal(number, signal.SIG_IGN)
    follow(json.load(sys.stdin), int(sys.argv[1]), lambda answer: print(json.dumps(answer), file=answers))
    os._exit(0)  # wandb's exit asks its server once more, for ten seconds where that hangs; all is written by now


if __name__ == "__main__":
    main()
