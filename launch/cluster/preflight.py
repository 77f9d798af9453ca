"""What is checked before a job is queued: it may wait for days, and would then end in its first minute.

The submitting machine is taken to see the same folders as the nodes; `launch --no-check` is for where it does not.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scanfoundry.configs.errors import UserError, UserErrors
from scanfoundry.configs.extras import check_installed
from scanfoundry.launch.cluster.options import ClusterConfig

if TYPE_CHECKING:  # not at run time: `launch status` and others should not take the seconds
    from scanfoundry.datasets.plan import SamplingPlan
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.pretrain.config.run import PretrainConfig

GB = 1e9
RELEASES = 2  # copies of the released weights while one replaces the other
UNCHECKED = "(--no-check submits without looking)"


def check_runs(configs: Iterable["PretrainConfig"], cluster: ClusterConfig) -> None:
    """Check data, divisibility and free space of every run that is about to be submitted.

    Args:
        configs: the runs; those of a sweep share a disk, and mostly their data.
        cluster: how many processes each gets.

    Raises:
        UserError: what would end a run as it starts.
    """
    plans: dict[str, SamplingPlan] = {}
    needs: Counter[Path] = Counter()
    for config in configs:
        _check_packages(config)
        _check_start(config)
        key = f"{config.seed} {config.data.model_dump_json()}"
        if key not in plans:
            plans = {key: _plan(config)}  # the newest alone: one may take a gigabyte
        check_divisible(config, plans[key], cluster.tasks)
        _check_data(config, plans[key])
        needs[_existing(config.run_dir)] += max(0, bytes_of_checkpoints(config) - _taken(config.run_dir))
    _check_space(needs)


def prepare_study(config: "FinetuneConfig", look: bool) -> None:
    """Check what a fine-tuning study reads, short of its scans, and put its configuration into its run folder.

    Args:
        config: of the study.
        look: check; else the configuration is written alone.

    Raises:
        UserError: what would end every trial as it starts; or the folder cannot be written.
    """
    from scanfoundry.finetune.study.prepare import check_lists
    from scanfoundry.finetune.study.run_folder import claim

    if look:
        try:
            check_lists(config)
        except UserErrors:
            raise
        except UserError as error:
            raise UserError(f"{error} {UNCHECKED}") from error
    try:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        claim(config)
    except OSError as error:
        raise UserError(f"cannot write to the run folder {config.run_dir}: {error.strerror}") from error


def _plan(config: "PretrainConfig") -> "SamplingPlan":
    """The plan that every rank will make: each source opened, its shards of full size, its scans found."""
    from scanfoundry.datasets.plan import SamplingPlan

    try:
        return SamplingPlan(config.data, config.seed)
    except UserError as error:
        raise UserError(f"{error} {UNCHECKED}") from error


def check_divisible(config: "PretrainConfig", plan: "SamplingPlan", processes: int) -> None:
    """UserError where the batch of a kind of step does not divide among processes and micro-batches."""
    parts = processes * config.engine.accumulation
    for kind in plan.kinds:
        if kind.batch % parts:
            name = "batch_2d" if kind.crop[0] == 1 else "batch_3d"
            raise UserError(
                f"data.{name}={kind.batch} does not divide among {processes} processes x {config.engine.accumulation} "
                f"micro-batches (engine.accumulation); set a multiple of {parts}"
            )


def _check_data(config: "PretrainConfig", plan: "SamplingPlan") -> None:
    """UserError where a run that continues would be refused: its data are others, or have grown unasked.

    A checkpoint that cannot be read is left to the start, which may pass it over.
    """
    from scanfoundry.pretrain.checkpoint import checkpoint, seal
    from scanfoundry.pretrain.training.planned import segments_now

    for found in seal.folders(config.run_dir / "checkpoints")[-1:]:
        try:
            step, _ = checkpoint.position(found, config.seed)
        except (OSError, ValueError, KeyError, TypeError):
            return
        try:
            segments_now(config, plan.data, found, step)
        except UserError as error:
            raise UserError(f"{error} {UNCHECKED}") from error


def bytes_of_checkpoints(config: "PretrainConfig") -> int:
    """What a run writes at most: the checkpoints that it keeps, the next one beside them, and a release.

    Pictures, metrics and logs are left out.
    """
    from scanfoundry.pretrain.memory.estimate import count
    from scanfoundry.pretrain.memory.states import FP32, checkpoint_bytes

    model = count(config)
    averages = FP32 * model.trainable if config.ema is not None else 0
    checkpoint = checkpoint_bytes(model, config.optimiser.name) + averages
    return (config.keep_last + 1) * checkpoint + RELEASES * FP32 * model.trainable


def _check_packages(config: "PretrainConfig") -> None:
    asked = {"wandb": config.wandb.mode != "off", "tensorboard": config.tensorboard}
    check_installed("deepspeed", *(name for name, wanted in asked.items() if wanted))


def _check_start(config: "PretrainConfig") -> None:
    """UserError where the weights of `init` are not there; a run that continues reads them no more."""
    from scanfoundry.backbones import find

    if config.init is not None and not any((config.run_dir / "checkpoints").glob("step-*")):
        find(config.init)


def _check_space(needs: Counter[Path]) -> None:
    """UserError where a disk has less free than all runs on it will write."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in needs.items():
        device = folder.stat().st_dev
        disks[device] = folder, disks.get(device, (folder, 0))[1] + size
    for folder, size in disks.values():
        free = shutil.disk_usage(folder).free
        if free < size:
            raise UserError(
                f"the disk of {folder} has {free / GB:.3g} GB free, and checkpoints and weights will take "
                f"{size / GB:.3g} GB; free some, lower keep_last, or choose another run_dir {UNCHECKED}"
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _taken(run_dir: Path) -> int:
    """Bytes of the checkpoints of an earlier start, which the new ones replace."""
    return sum(path.stat().st_size for path in (run_dir / "checkpoints").glob("step-*/*") if path.is_file())
