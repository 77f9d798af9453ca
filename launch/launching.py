"""`scanforge launch`: resolve, check, submit, and wait where asked to."""

import sys
import time
from pathlib import Path
from typing import Any

from scanforge.configs.errors import UserError
from scanforge.configs.loading import check, find, load, read_yaml


def launch_command(source: str, words: list[str], cluster: str, asked: dict[str, Any], defaults: str | None,
                   wait: bool | None) -> int:  # fmt: skip
    """Submit the run; returns the exit code: 0 submitted or complete, 1 the job failed."""
    from scanforge.launch.cluster import ClusterConfig, submit
    from scanforge.pretrain.config import PretrainConfig

    if cluster not in ("slurm", "local"):
        raise UserError(f"--cluster {cluster}: choose slurm or local")
    if cluster == "local" and asked.get("nodes", 1) != 1:
        raise UserError("--cluster local has one node; use --tasks-per-node for more processes")
    config = load(PretrainConfig, source, "pretrain", words)
    base = read_yaml(find(defaults, "cluster")) if defaults else {}
    job_config = check(ClusterConfig, {**base, **asked}, "launch options")
    content = config.model_dump(mode="json")
    content["run_dir"] = str(config.run_dir.absolute())
    for one in content["data"]["sources"]:
        one["path"] = str(Path(one["path"]).absolute())
    # Job ids start anew with a cluster's life; a folder of its own keeps old results from being read back.
    folder = Path(content["run_dir"]) / "jobs" / time.strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        job = submit(content, "slurm" if cluster == "slurm" else "local", job_config, folder)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(f"could not submit to {cluster}: {reason}") from error
    print(f"job {job.job_id}; run folder {content['run_dir']}; log {job.paths.stderr}")
    if not (cluster == "local" if wait is None else wait):
        return 0
    return _wait(job)


def _wait(job: Any) -> int:
    try:
        results = job.results()
    except KeyboardInterrupt:
        job.cancel()
        raise
    except Exception as error:  # whatever the job raised arrives here, wrapped by submitit
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        print(
            f"scanforge: job {job.job_id} failed: {lines[-1] if lines else type(error).__name__}",
            file=sys.stderr,
        )
        print(f"scanforge: its log is {job.paths.stderr}", file=sys.stderr)
        return 1
    print(f"complete: step {results[0]['step']} in {results[0]['run_dir']}")
    return 0
