"""`scanfoundry launch CONFIG`: resolve every run, or every trial of a study, check all, submit, wait."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check, find, read_yaml
from scanfoundry.launch.cluster import source_copy, sweep
from scanfoundry.launch.cluster.job_folder import JobRecord, job_folders
from scanfoundry.launch.cluster.options import ClusterConfig, check_own_format, check_plain_folder
from scanfoundry.launch.cluster.overview import is_active
from scanfoundry.launch.cluster.planning import Plan, is_study, make_plan, study_plan
from scanfoundry.launch.cluster.preflight import check_runs, prepare_study
from scanfoundry.launch.cluster.wait import wait_for


def launch_command(source: str, words: list[str], cluster: str, asked: dict[str, Any], defaults: str | None,
                   wait: bool | None, dry_run: bool, take_snapshot: bool, look: bool = True) -> int:  # fmt: skip
    """Check every run of a command, then submit them, and wait where that is asked for.

    Args:
        source: a YAML file or a recipe's name, of a pre-training or of a fine-tuning study.
        words: overrides `key=value`; `key=a,b` makes a sweep.
        cluster: 'slurm' or 'local'.
        asked: options of the job that were typed; they win over `defaults`.
        defaults: a YAML file of cluster defaults, or a name in `configs/cluster`.
        wait: whether to wait for the end; None: only for a job on this machine.
        dry_run: show what would be submitted and what memory it needs; write nothing.
        take_snapshot: run a copy of the code as it is now.
        look: check data, divisibility and free space before anything is submitted.

    Returns:
        The exit code: 0 if all is submitted or complete, else that of a job that failed.

    Raises:
        UserError: a configuration or option is wrong, a run folder is in use, or the scheduler refuses.
    """
    base = read_yaml(find(defaults, "cluster")) if defaults else {}
    config = check(ClusterConfig, {**base, **asked}, "launch options")
    check_own_format(cluster, config)
    plan = study_plan(source, words, config) if is_study(source) else make_plan(source, words)
    for run_dir in (plan.parent, *plan.run_dirs):
        check_plain_folder(run_dir, cluster, take_snapshot)
    if dry_run:
        _show(plan, cluster, config, take_snapshot)
        return 0
    wait = cluster == "local" if wait is None else wait
    if cluster == "local" and len(plan.members) > 1 and not wait:
        raise UserError("a sweep on this machine runs one job after another and has to be waited for; drop --no-wait")
    for folder in plan.folders:
        for other in job_folders(folder.path.parents[1]):
            if is_active(other):
                raise UserError(
                    f"job {other.record().job_id} is at work in {folder.path.parents[1]}; `scanfoundry launch cancel` "
                    "ends it, or choose another run_dir"
                )
    if plan.study is not None:
        prepare_study(plan.study, look)
    elif look:
        check_runs(plan.configs, config)
    return _submit(plan, cluster, config, wait, take_snapshot)


def _submit(plan: Plan, cluster: str, config: ClusterConfig, wait: bool, take_snapshot: bool) -> int:
    from scanfoundry.launch.cluster.submit import submit

    folders, contents = plan.folders, plan.contents
    try:
        plan.logs.mkdir(parents=True, exist_ok=True)
        code = plan.logs / "code" if take_snapshot else None
        digest = source_copy.take(code) if code else None
        if plan.members[0].name:
            sweep.write(plan.parent, plan.members)
        for folder, run_dir, steps in zip(folders, plan.run_dirs, plan.steps, strict=True):
            folder.write_record(_job_record(plan, cluster, config, run_dir, steps, digest))
        worst, step = 0, 1 if cluster == "local" else len(folders)
        for i in range(0, len(folders), step):  # this machine takes one after another, SLURM all at once
            part = slice(i, i + step)
            ids = submit(cluster, contents[part], folders[part], config, plan.logs, code, plan.trials[part])
            for job_id, run_dir in zip(ids, plan.run_dirs[i:], strict=False):
                print(f"job {job_id}; run folder {run_dir}; log {plan.logs / f'{job_id}_0_log.out'}", flush=True)
            if wait:
                worst = max([worst, *(wait_for(folder) for folder in folders[i : i + step])])
    except (OSError, RuntimeError) as error:
        for folder in folders:  # what was not submitted leaves nothing behind
            if folder.exists and folder.record().job_id is None:
                shutil.rmtree(folder.path, ignore_errors=True)
        if not any(folder.exists for folder in folders):
            shutil.rmtree(plan.logs, ignore_errors=True)
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(f"could not submit to {cluster}: {reason}") from error
    return worst


def _job_record(
    plan: Plan, cluster: str, config: ClusterConfig, run_dir: Path, steps: int, digest: str | None
) -> JobRecord:
    return JobRecord(
        cluster=cluster, run_dir=str(run_dir), logs=str(plan.logs), tasks=config.tasks, steps=steps,
        host=os.uname().nodename, submitted=time.time(), timeout_min=config.timeout_min,
        signal_delay_s=config.signal_delay_s, max_requeues=config.max_requeues,
        max_crash_requeues=config.max_crash_requeues, code=digest,
    )  # fmt: skip


def _show(plan: Plan, cluster: str, config: ClusterConfig, take_snapshot: bool) -> None:
    """`--dry-run`: what would be submitted, and what it needs of each GPU; nothing is written."""
    import yaml

    from scanfoundry.launch.cluster.dry_run import describe
    from scanfoundry.launch.cluster.submit import script

    for member, run_dir in zip(plan.members, plan.run_dirs, strict=True):
        print(f"run folder {run_dir}" + (f" ({' '.join(member.words)})" if member.words else ""))
    print("\njob:\n" + yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False).rstrip())
    if cluster == "slurm":
        print("\nsbatch script:\n" + script(config, plan.logs, plan.logs / "code" if take_snapshot else None,
                                            len(plan.members)).rstrip())  # fmt: skip
    for member, run in zip(plan.members, plan.configs, strict=False):  # a study has none: nobody estimates its memory
        print("\n" + "\n".join([*([member.name] if member.name else []), *describe(run, config)]))
