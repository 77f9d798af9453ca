"""`scanfoundry launch CONFIG`: resolve every run, or every trial of a study, check all, submit, wait."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check, find, load, read_yaml, recipes
from scanfoundry.launch.cluster import source_copy, sweep
from scanfoundry.launch.cluster.job_folder import JobFolder, JobRecord, job_folders
from scanfoundry.launch.cluster.options import ClusterConfig, check_own_format, check_plain_folder
from scanfoundry.launch.cluster.overview import is_active
from scanfoundry.launch.cluster.preflight import check_runs, prepare_study
from scanfoundry.launch.cluster.wait import wait_for

if TYPE_CHECKING:
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.pretrain.config.run import PretrainConfig


@dataclass(frozen=True)
class Plan:
    """What is about to be submitted, job by job.

    parent: the run folder, or the folder of a sweep's runs or of a study's trials.
    configs: the configuration of each job.
    members: what tells the jobs apart.
    trials: of a study, the trial of each job.
    """

    parent: Path
    configs: list["PretrainConfig"] | list["FinetuneConfig"]
    members: list[sweep.SweepRun]
    stamp: str
    trials: tuple[str, ...] = ()

    @property
    def run_dirs(self) -> list[Path]:
        """Where each job works: a run folder, or the folder of a trial in that of its study."""
        if self.trials:
            return [self.parent / member.name for member in self.members]
        return [config.run_dir for config in self.configs]

    @property
    def logs(self) -> Path:
        """submitit's folder: scripts, logs, the snapshot. A new one each time, since job ids come again."""
        return self.parent / "jobs" / self.stamp

    @property
    def folders(self) -> list[JobFolder]:
        """A job folder in each of `run_dirs`."""
        return [JobFolder(run_dir / "jobs" / self.stamp) for run_dir in self.run_dirs]


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
    if cluster == "local" and len(plan.configs) > 1 and not wait:
        raise UserError("a sweep on this machine runs one job after another and has to be waited for; drop --no-wait")
    for folder in plan.folders:
        for other in job_folders(folder.path.parents[1]):
            if is_active(other):
                raise UserError(
                    f"job {other.record().job_id} is at work in {folder.path.parents[1]}; `scanfoundry launch cancel` "
                    "ends it, or choose another run_dir"
                )
    if plan.trials:
        prepare_study(plan.configs[0], look)
    elif look:
        check_runs(plan.configs, config)
    return _submit(plan, cluster, config, wait, take_snapshot)


def make_plan(source: str, words: list[str]) -> Plan:
    """Every run, checked: its configuration, and that its folder does not hold another run already."""
    from scanfoundry.pretrain.config.run import PretrainConfig
    from scanfoundry.pretrain.training.run_folder import check_same_run

    members = sweep.expand(words)
    configs = []
    for member in members:
        config = load(PretrainConfig, source, "pretrain", list(member.words))
        content = config.model_dump(mode="json")
        content["run_dir"] = str(config.run_dir.absolute() / member.name)
        for one in content["data"]["sources"]:
            if one["path"] is not None and "://" not in one["path"]:
                one["path"] = str(Path(one["path"]).absolute())
        configs.append(check(PretrainConfig, content, source))
        check_same_run(configs[-1])
    parent = configs[0].run_dir.parent if members[0].name else configs[0].run_dir
    return Plan(parent, configs, members, _stamp())


def study_plan(source: str, words: list[str], cluster: ClusterConfig) -> Plan:
    """One job for each trial of a fine-tuning study.

    Raises:
        UserError: the configuration is wrong, its folder holds something else, or a trial cannot be run as asked.
    """
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.finetune.study.prepare import trial_names
    from scanfoundry.finetune.study.run_folder import check_same_study
    from scanfoundry.finetune.study.trial import TRIALS

    if cluster.tasks > 1:
        raise UserError("a trial of a study is one process: leave out --nodes and --tasks-per-node")
    config = load(FinetuneConfig, source, "finetune", words)
    config = config.model_copy(update={"run_dir": config.run_dir.absolute()})
    check_same_study(config)
    names = tuple(name.folder for name in trial_names(config))
    members = [sweep.SweepRun(f"{TRIALS}/{name}", ()) for name in names]
    return Plan(config.run_dir, [config] * len(names), members, _stamp(), names)


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid() % 10000:04d}"


def is_study(source: str) -> bool:
    """Whether a file or a recipe is of a fine-tuning study; what is of neither kind counts as a pre-training."""
    if not Path(source).is_file():
        return source not in recipes("pretrain") and source in recipes("finetune")
    content = read_yaml(Path(source))
    return "task" in content and "objective" not in content


def _submit(plan: Plan, cluster: str, config: ClusterConfig, wait: bool, take_snapshot: bool) -> int:
    from scanfoundry.launch.cluster.submit import submit

    folders, contents = plan.folders, [one.model_dump(mode="json") for one in plan.configs]
    runs = list(zip(folders, plan.run_dirs, plan.configs, strict=True))
    try:
        plan.logs.mkdir(parents=True, exist_ok=True)
        code = plan.logs / "code" if take_snapshot else None
        digest = source_copy.take(code) if code else None
        if plan.members[0].name:
            sweep.write(plan.parent, plan.members)
        for folder, run_dir, one in runs:
            folder.write_record(_job_record(plan, cluster, config, run_dir, getattr(one, "steps", 0), digest))
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
                                            len(plan.configs)).rstrip())  # fmt: skip
    for member, run in zip(plan.members, [] if plan.trials else plan.configs, strict=not plan.trials):
        print("\n" + "\n".join([*([member.name] if member.name else []), *describe(run, config)]))
