"""One trial of a launched study: from its configuration to an exit code that says how it ended."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

from scanfoundry.configs.log import shown_log
from scanfoundry.configs.text import guarded
from scanfoundry.launch.cluster.job_folder import JobFolder, Kind, newest_step
from scanfoundry.launch.cluster.rank_main import ending, leave

logger = logging.getLogger(__name__)


@guarded()
@shown_log()
def run_trial_task(content: dict[str, Any], trial: str, job: JobFolder, life: str) -> dict[str, Any]:
    """Run the trial; returns when it is finished, and leaves the process with an exit code in every other case."""
    folder = Path(job.record().run_dir)
    if job.is_cancelled:
        leave(job, life, 0, "cancelled", "the job was cancelled before this start")
    begun = newest_step(folder)
    job.note("start", life=life, step=begun, host=os.uname().nodename)
    try:
        return _run(content, trial, job, life)
    except KeyboardInterrupt as stopped:  # `interrupts.Stopped` is one, which says what is saved
        asked = getattr(stopped, "signal", signal.SIGINT)
        kind: Kind = "interrupted" if asked == signal.SIGINT else "stopped"
        leave(job, life, 0, kind, str(stopped) or "interrupted")
    except Exception as error:
        leave(job, life, 0, *ending(error, lambda: begun > 0))


def _run(content: dict[str, Any], trial: str, job: JobFolder, life: str) -> dict[str, Any]:
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.finetune.run_alone import run_alone

    report = run_alone(FinetuneConfig.model_validate(content), trial)
    if report is not None:
        logger.info("all trials are finished; the report is %s", report)
    job.write_end(life, 0, "complete")
    return {"trial": trial, "report": None if report is None else str(report)}
