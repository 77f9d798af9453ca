"""The variables of a job. What the user has set wins; secrets travel with the environment and are written nowhere."""

import os
import shlex
from pathlib import Path

from scanfoundry.configs.plugins import VARIABLE
from scanfoundry.launch.cluster.options import ClusterConfig

DEFAULTS = {
    "PYTHONSAFEPATH": "1",  # a job that starts in our root must not find our folder `datasets`
    "PYTHONFAULTHANDLER": "1",  # a segmentation fault leaves its stack in the log
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # a failed collective ends the process at once instead of hanging it
    "NCCL_DEBUG": "WARN",
}


def exports(config: ClusterConfig, code: Path | None) -> dict[str, str]:
    """What the job's shell sets: the site's `env`, threads, and the defaults where the user has nothing of his own.

    The threads are `cpus_per_task`, whatever OMP_NUM_THREADS the submitting shell has: login nodes often set it to 1.
    code: the folder with the snapshot; its packages win over every installed one.
    """
    found = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
    found |= {"OMP_NUM_THREADS": str(config.cpus_per_task)} | config.env
    if named := os.environ.get(VARIABLE):  # also where a site's scheduler takes no environment along
        found.setdefault(VARIABLE, os.pathsep.join(os.path.abspath(path) for path in named.split(os.pathsep) if path))
    if code is not None:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    return found


def export_lines(variables: dict[str, str]) -> list[str]:
    """The same as lines of a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
