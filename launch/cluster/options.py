"""What a job may ask for: by option, or from a site's defaults in `configs/cluster/*.yaml`."""

import os
import re
from pathlib import Path

from pydantic import Field, field_validator

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError

OWN = {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "partition", "account", "qos",
       "constraint", "time", "signal", "array", "output", "error", "open-mode", "job-name", "requeue"}  # fmt: skip
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPTION = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_REPLACED = {"slurm": re.compile("%"), "local": re.compile("%[jtAa]")}  # by SLURM, and by submitit
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
# What a job on this machine can follow; the others are for a scheduler.
LOCAL = {"nodes", "tasks_per_node", "gpus_per_node", "gpu_memory_gb", "cpus_per_task", "timeout_min", "signal_delay_s",
         "max_requeues", "max_crash_requeues", "env", "setup"}  # fmt: skip


class ClusterConfig(Config):
    """What a job asks for; `configs/cluster/*.yaml` hold a site's defaults.

    signal_delay_s: how long before the time limit the job is told to save and requeue itself; it must suffice for a
    step and a checkpoint. SLURM looks at its limits about twice a minute and may tell early, so `timeout_min` must
    leave more than a minute beside it.
    max_requeues: starts in a row that come to no new checkpoint, whatever ended them. max_crash_requeues: the same of
    lost ranks, crashes and hangs.
    sbatch: further options of sbatch by their long names, `{exclusive: true, mail-type: FAIL, gres: "gpu:a100:8"}`.
    python: the command that starts Python for the tasks, where that is another than the submitting one, in a container:
    `apptainer exec --nv scanfoundry.sif python`. What runs beside the tasks, and asks SLURM, stays the submitting one.
    env: variables of the job, such as NCCL_SOCKET_IFNAME; no secrets, since they are written into the job's script.
    """

    nodes: int = Field(default=1, ge=1)
    tasks_per_node: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_task: int = Field(default=1, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    gpu_memory_gb: float | None = Field(default=None, gt=0)  # of one GPU; `--dry-run` says what fits into it
    timeout_min: int = Field(default=60 * 24, ge=1)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    signal_delay_s: int = Field(default=120, ge=1)
    max_requeues: int = Field(default=20, ge=0)
    max_crash_requeues: int = Field(default=3, ge=0)
    array_parallelism: int = Field(default=16, ge=1)  # of a sweep's runs at the same time
    sbatch: dict[str, str | int | bool] = {}
    env: dict[str, str] = {}
    python: str | None = None
    setup: tuple[str, ...] = ()  # shell lines that run before python starts

    @field_validator("partition", "account", "qos", "constraint", "python")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        return None if value is None else one_line(value)

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, value: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        value = {key.replace("_", "-").lstrip("-"): one for key, one in value.items()}
        for key in sorted(OWN & value.keys()):
            raise ValueError(f"'{key}' has an option of its own or belongs to the launcher")
        for key, one in value.items():
            if not OPTION.fullmatch(key):
                raise ValueError(f"{key!r} is no option of sbatch: letters, digits and '-' are")
            if isinstance(one, str):
                one_line(one)
        return value

    @field_validator("env", mode="before")
    @classmethod
    def _no_secrets(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for key in value:
            if SECRET.search(str(key)):
                raise ValueError(f"{key} looks like a secret; set it in your shell, which the job inherits")
            if not VARIABLE.fullmatch(str(key)):
                raise ValueError(f"{str(key)!r} is no name of a variable: letters, digits and '_', no digit first")
            if "\0" in str(value[key]):
                raise ValueError(f"the value of {key} holds a zero byte, which no variable can")
        return {str(key): str(one) for key, one in value.items()}

    @property
    def tasks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.tasks_per_node


def one_line(text: str) -> str:
    """`text`, which becomes part of a line of a job's script; ValueError where it would not stay in it."""
    if not text.isprintable():
        raise ValueError(f"{text!r} holds a line break or another sign that cannot be printed")
    return text


def check_plain_folder(run_dir: Path, cluster: str, snapshot: bool) -> None:
    """UserError for a run folder that a job's script, the names of its logs or PYTHONPATH would take for another."""
    text = str(run_dir)
    if not text.isprintable():
        raise UserError(f"run_dir={text!r} holds a line break or another sign that cannot be printed; choose another")
    if _REPLACED[cluster].search(text):
        raise UserError(f"run_dir={text}: '%' stands for something else in the names of a job's logs; choose another")
    if snapshot and os.pathsep in text:
        raise UserError(
            f"run_dir={text}: the job finds the snapshot of its code by PYTHONPATH, which is parted at each "
            f"'{os.pathsep}'; choose another, or --no-snapshot to run the installed code"
        )


def check_own_format(cluster: str, config: ClusterConfig) -> None:
    """UserError where an option cannot be followed: those of a scheduler, on this machine."""
    if cluster not in ("slurm", "local"):
        raise UserError(f"--cluster {cluster}: choose slurm or local")
    if cluster == "local":
        if config.nodes != 1:
            raise UserError("--cluster local has one node; use --tasks-per-node for more processes")
        foreign = sorted(name for name in config.model_fields_set - LOCAL if getattr(config, name))
        if foreign:
            raise UserError(f"--cluster local has no scheduler and cannot follow {', '.join(foreign)}; leave it out")
