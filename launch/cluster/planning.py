"""What `scanfoundry launch` is about to submit: runs of a pre-training or trials of a study, each checked."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check, load, read_yaml, recipes
from scanfoundry.launch.cluster import sweep
from scanfoundry.launch.cluster.job_folder import JobFolder
from scanfoundry.launch.cluster.options import ClusterConfig

if TYPE_CHECKING:
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.pretrain.config.run import PretrainConfig


@dataclass(frozen=True)
class Plan:
    """What is about to be submitted, job by job.

    parent: the run folder, or the folder of a sweep's runs or of a study's trials.
    members: what tells the jobs apart.
    configs: of pre-trainings, one for each job.
    study: the fine-tuning study whose trials the jobs are.
    """

    parent: Path
    members: list[sweep.SweepRun]
    stamp: str
    configs: tuple["PretrainConfig", ...] = ()
    study: "FinetuneConfig | None" = None

    @property
    def run_dirs(self) -> list[Path]:
        """Where each job works: a run folder, or the folder of a trial in that of its study."""
        if self.study is not None:
            return [self.parent / member.name for member in self.members]
        return [config.run_dir for config in self.configs]

    @property
    def trials(self) -> list[str]:
        """The trial of each job of a study."""
        return [Path(member.name).name for member in self.members] if self.study is not None else []

    @property
    def steps(self) -> list[int]:
        """Of each job; 0 for a trial, whose steps are in its study's results."""
        return [config.steps for config in self.configs] or [0] * len(self.members)

    @property
    def contents(self) -> list[dict[str, Any]]:
        """The configuration of each job, as its tasks get it."""
        if self.study is not None:
            return [self.study.model_dump(mode="json")] * len(self.members)
        return [config.model_dump(mode="json") for config in self.configs]

    @property
    def logs(self) -> Path:
        """submitit's folder: scripts, logs, the snapshot. A new one each time, since job ids come again."""
        return self.parent / "jobs" / self.stamp

    @property
    def folders(self) -> list[JobFolder]:
        """A job folder in each of `run_dirs`."""
        return [JobFolder(run_dir / "jobs" / self.stamp) for run_dir in self.run_dirs]


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
    return Plan(parent, members, _stamp(), tuple(configs))


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
    members = [sweep.SweepRun(f"{TRIALS}/{name.folder}", ()) for name in trial_names(config)]
    return Plan(config.run_dir, members, _stamp(), study=config)


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid() % 10000:04d}"


def is_study(source: str) -> bool:
    """Whether a file or a recipe is of a fine-tuning study; what is of neither kind counts as a pre-training."""
    if not Path(source).is_file():
        return source not in recipes("pretrain") and source in recipes("finetune")
    content = read_yaml(Path(source))
    return "task" in content and "objective" not in content
