"""One rank of a launched run: from the scheduler's variables to an exit code that says how it ended."""

import contextlib
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.log import shown_log
from scanfoundry.configs.text import guarded, printable
from scanfoundry.datasets.storage.faults import is_storage_fault
from scanfoundry.launch.cluster.job_folder import EXIT, JobFolder, Kind, newest_step
from scanfoundry.pretrain.distributed.preemption import StopRequest

logger = logging.getLogger(__name__)

LONGEST = 200  # characters of an exception in a verdict; the log has it all


@dataclass(frozen=True)
class RankInfo:
    """Who this process is in the job. life: names one start of the job, on every rank alike."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    main_host: str
    life: str

    def export(self, job: JobFolder) -> None:
        """Set what `pretrain.distributed.join` reads."""
        for name in ("MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):  # of a shell that the job was submitted from
            os.environ.pop(name, None)
        os.environ.update({
            "RANK": str(self.rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size), "MASTER_ADDR": self.main_host,
            "SCANFOUNDRY_RENDEZVOUS": str(job.rendezvous(self.life)),
        })  # fmt: skip


@guarded()
@shown_log()
def run_rank(content: dict[str, Any], job: JobFolder, info: RankInfo) -> dict[str, Any]:
    """Pre-train; returns when the run is complete, and leaves the process with an exit code in every other case.

    The handlers stand before torch is imported: a signal during the start is kept and answered at the first step.
    """
    info.export(job)
    with StopRequest() as stop:
        if job.is_cancelled:
            leave(job, info.life, info.rank, "cancelled", "the job was cancelled before this start")
        if info.rank == 0:
            job.note("start", life=info.life, step=newest_step(Path(content["run_dir"])), host=os.uname().nodename)
        try:
            return _pretrain(content, job, info, stop)
        except KeyboardInterrupt:
            leave(job, info.life, info.rank, "interrupted", "interrupted")
        except Exception as error:
            kind, reason = ending(error, lambda: _has_checkpoint(content))
            told = reason if isinstance(error, UserError) else f"rank {info.rank}: {reason}"
            leave(job, info.life, info.rank, kind, told)


def ending(error: Exception, has_checkpoint: Callable[[], bool]) -> tuple[Kind, str]:
    """How a process ends by an error, and the reason in one line; of an error that is no user's the log has it all.

    What worked up to a checkpoint and is gone now may come back; before that it is a mistake.
    """
    away = isinstance(error, UserError | OSError) and is_storage_fault(error) and has_checkpoint()
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return "unreachable" if away else "final", text
    traceback.print_exception(error)
    return "unreachable" if away else "crashed", f"{type(error).__name__}: {text[:LONGEST]}"


def _pretrain(content: dict[str, Any], job: JobFolder, info: RankInfo, stop: StopRequest) -> dict[str, Any]:
    import signal

    from scanfoundry.configs.loading import check
    from scanfoundry.pretrain.config.run import PretrainConfig
    from scanfoundry.pretrain.distributed.world import barrier, join
    from scanfoundry.pretrain.distributed.world import leave as leave_group
    from scanfoundry.pretrain.training.loop import run

    config = check(PretrainConfig, content, "job")
    result = run(config, stop, lambda text: job.write_end(info.life, info.rank, "crashed", text))
    world = join(config.device, config.threads)
    if not result.complete:
        # Every rank must have saved and closed its log: the first to leave takes the others with it.
        kind: Kind = "interrupted" if result.signal == signal.SIGINT else "stopped"
        job.write_end(info.life, info.rank, kind, f"stopped and saved at step {result.step}")
        barrier(world)
        _exit(EXIT[kind])
    leave_group(world)
    gc.collect()
    job.write_end(info.life, info.rank, "complete")
    return {"run_dir": str(result.run_dir), "step": result.step}


def _has_checkpoint(content: dict[str, Any]) -> bool:
    """Whether the run has come to a checkpoint; where nobody can tell, its folder is away too, which then was there."""
    try:
        os.stat(content["run_dir"])
        return newest_step(Path(content["run_dir"])) > 0
    except OSError:
        return True


def leave(job: JobFolder, life: str, rank: int, kind: Kind, reason: str) -> NoReturn:
    """Say how it ended and end at once: peers may hang in a collective, which the interpreter would wait for."""
    logger.error("%s", printable(reason))
    with contextlib.suppress(OSError):  # a full disk, which is a reason too: the exit code says the same
        job.write_end(life, rank, kind, reason)
    _exit(EXIT[kind])


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
