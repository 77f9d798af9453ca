"""The one place that knows submitit: a run as a job on SLURM or as processes on this machine."""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import submitit
from pydantic import Field

from scanforge.configs.base import Config


class ClusterConfig(Config):
    """What a job asks for; `configs/cluster/*.yaml` hold a site's defaults.

    `signal_delay_s`: how long before the time limit the job is told to save and requeue itself. SLURM looks at its
    limits about twice a minute and may tell early, so `timeout_min` must leave more than a minute beside it.
    """

    nodes: int = Field(default=1, ge=1)
    tasks_per_node: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_task: int = Field(default=1, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    timeout_min: int = Field(default=60 * 24, ge=1)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    signal_delay_s: int = Field(default=120, ge=1)
    max_requeues: int = Field(default=100, ge=0)
    setup: tuple[str, ...] = ()  # shell lines that SLURM runs before python starts


class PretrainJob:
    """What submitit pickles and calls in every task; requeued, it continues the same run folder."""

    def __init__(self, content: dict[str, Any], threads: int) -> None:
        self.content, self.threads = content, threads

    def __call__(self) -> dict[str, Any]:
        """Join the other tasks, pre-train; at a stop signal save on all ranks, then let submitit requeue."""
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ.setdefault("PYTHONSAFEPATH", "1")
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        from scanforge.configs.loading import check
        from scanforge.pretrain.config import PretrainConfig
        from scanforge.pretrain.distributed import join, leave
        from scanforge.pretrain.loop import run
        from scanforge.pretrain.preemption import StopRequest

        config = check(PretrainConfig, self.content, "job")
        with StopRequest() as stop:
            result = run(config, stop)
            world = join(config.device, config.threads)
            if not result.complete:
                _hand_over(stop.previous_handler, result.signal, world.is_main)
        leave(world)
        gc.collect()
        return {"run_dir": str(result.run_dir), "step": result.step, "complete": result.complete}

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit when it requeues; everything is in the run folder already."""
        return submitit.helpers.DelayedSubmission(PretrainJob(self.content, self.threads))


Handler = Callable[[int, FrameType | None], Any]


def _hand_over(previous: Callable[[int], Handler | None], number: int | None, is_main: bool) -> None:
    """Rank 0 calls submitit's own handler, which requeues the job and ends it; the others wait to be ended."""
    handler = previous(number) if number is not None else None
    if is_main and handler is not None and number is not None:
        handler(number, None)
    time.sleep(600)


def submit(content: dict[str, Any], cluster: Literal["slurm", "local"], config: ClusterConfig, folder: Path) -> Any:
    """Submit a pre-training run; `content` is its resolved configuration, `folder` takes submitit's files and logs."""
    executor: Any
    if cluster == "slurm":
        executor = submitit.SlurmExecutor(folder, max_num_timeout=config.max_requeues)
        executor.update_parameters(**_slurm(config))
    else:
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(
            nodes=config.nodes, tasks_per_node=config.tasks_per_node, gpus_per_node=config.gpus_per_node,
            timeout_min=config.timeout_min, signal_delay_s=config.signal_delay_s, setup=list(config.setup),
        )  # fmt: skip
    return executor.submit(PretrainJob(content, config.cpus_per_task))


def _slurm(config: ClusterConfig) -> dict[str, Any]:
    asked = {
        "job_name": "scanforge", "nodes": config.nodes, "ntasks_per_node": config.tasks_per_node,
        "cpus_per_task": config.cpus_per_task, "time": config.timeout_min, "signal_delay_s": config.signal_delay_s,
        "partition": config.partition, "account": config.account, "qos": config.qos,
        "constraint": config.constraint, "setup": ["export PYTHONSAFEPATH=1", *config.setup],
        "gpus_per_node": config.gpus_per_node or None,
        "mem": f"{int(config.memory_gb * 1024)}M" if config.memory_gb else None,
    }  # fmt: skip
    return {key: value for key, value in asked.items() if value is not None}
