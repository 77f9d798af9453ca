"""`scanfoundry launch data-build`: the parts of a build as an array of SLURM jobs, and a job that merges them."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check, find, read_yaml
from scanfoundry.launch.cluster.environment import export_lines, exports
from scanfoundry.launch.cluster.options import ClusterConfig, check_plain_folder

_COMMAND = shlex.join([sys.executable, "-c", "from scanfoundry.launch.cli.main import main; main()"])
# A killed build goes on where it was, so the time limit is no failure: it is told to end and waits for its turn again.
_REQUEUE = """requeue() {{
  kill -TERM $child; wait $child
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
  exit 1
}}
trap requeue USR2"""


@dataclass(frozen=True)
class BuildWords:
    """Inputs and options of `data build`, but for `--out` and `--part`, as they were typed; and two of them, read."""

    words: Sequence[str]
    workers: int | None = None
    max_bad: float = 0.10


def data_build_command(
    given: BuildWords, out: Path, parts: int, asked: dict[str, Any], defaults: str | None, dry_run: bool
) -> None:
    """Submit the parts of a build, and their merge behind them.

    Args:
        given: what is to be built.
        out: folder of the data set, on a disk that all nodes see.
        parts: how many.
        asked: options of the jobs that were typed; they win over `defaults`.
        defaults: a YAML file of cluster defaults, or a name in `configs/cluster`.
        dry_run: print the scripts; submit nothing.

    Raises:
        UserError: an option is wrong, or the scheduler refuses.
    """
    base = read_yaml(find(defaults, "cluster")) if defaults else {}
    config = check(ClusterConfig, {**base, **asked}, "launch options")
    check_plain_folder(out.absolute(), "slurm", False)
    logs = out.absolute().with_name(f"{out.name}-jobs") / (
        time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid() % 10000:04d}"
    )
    build, merge = scripts(given, out.absolute(), parts, config, logs)
    if dry_run:
        print(f"{build}\n{merge}", end="")
        return
    logs.mkdir(parents=True)
    for name, text in (("build.sh", build), ("merge.sh", merge)):
        (logs / name).write_text(text)
    array = _sbatch(logs / "build.sh")
    last = _sbatch(logs / "merge.sh", f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
    print(f"job {array}: {parts} parts; job {last} merges them into {out}; logs in {logs}")


def scripts(given: BuildWords, out: Path, parts: int, config: ClusterConfig, logs: Path) -> tuple[str, str]:
    """The scripts of the array and of the merge."""
    words = [*given.words, "--out", str(out)]
    if given.workers is None:
        words += ["--workers", str(config.cpus_per_task)]
    build = f"{_COMMAND} data build {shlex.join(words)} --part $SLURM_ARRAY_TASK_ID/{parts}"
    merge = f"{_COMMAND} data merge {shlex.join([str(out), '--max-bad', f'{given.max_bad:g}'])}"
    array = {"array": f"1-{parts}%{config.array_parallelism}", "output": f"{logs}/part-%a.out"}
    return _script(build, array, config), _script(merge, {"output": f"{logs}/merge.out"}, config)


def _script(command: str, own: dict[str, str], config: ClusterConfig) -> str:
    asked: dict[str, Any] = {
        "job-name": "scanfoundry-data", **own, "open-mode": "append", "nodes": 1, "ntasks": 1,
        "cpus-per-task": config.cpus_per_task, "time": config.timeout_min, "partition": config.partition,
        "account": config.account, "qos": config.qos, "constraint": config.constraint,
        "mem": f"{int(config.memory_gb * 1024)}M" if config.memory_gb else None,
        "signal": f"B:USR2@{config.signal_delay_s}", **config.sbatch,
    }  # fmt: skip
    flags = [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={value}"
        for name, value in asked.items()
        if value is not None and value is not False
    ]
    lines = [
        "#!/bin/bash",
        *flags,
        "#SBATCH --requeue",
        *export_lines(exports(config, None)),
        *config.setup,
        _REQUEUE.format(most=config.max_requeues),
        f"{command} &",
        "child=$!",
        "wait $child",
    ]
    return "\n".join(lines) + "\n"


def _sbatch(script: Path, *options: str) -> str:
    """Submit a script; returns the job's id."""
    try:
        command = ["sbatch", "--parsable", *options, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError as error:
        raise UserError("there is no sbatch here: build the parts by 'scanfoundry data build --part I/N'") from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
        raise UserError(f"could not submit {script}: {reason}") from error
    return done.stdout.strip().partition(";")[0]
