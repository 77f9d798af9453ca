"""A run folder belongs to one process group at a time and to one configuration, against which a later one is held."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_text
from scanfoundry.configs.loading import read_yaml
from scanfoundry.configs.parsing.differences import first_difference
from scanfoundry.datasets.storage.run_folder import HARMLESS, LOCK, names_in, take
from scanfoundry.pretrain.config.run import FREE_TO_CHANGE, PretrainConfig
from scanfoundry.pretrain.distributed.world import World, gather_objects

# Of any section: what changes the speed or the place of the same numbers, or how long somebody waits for them.
INDIFFERENT = {"workers", "ring", "path", "zero_stage", "offload", "activation_checkpointing", "cache", "timeout_s",
               "bad_sample_ceiling", "allow_grown"}  # fmt: skip
ACCUMULATION = "engine.accumulation"
PATIENCE = 60.0  # seconds that a run waits for the one before it to end: a requeued job may start while that one dies


@contextmanager
def held(run_dir: Path, world: World, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of the run folder while the context is open; every rank calls it.

    Raises UserError on every rank where another process holds it, or it cannot be written. The lock is the kernel's:
    that of a process that died, however, is none.
    """
    with ExitStack() as stack:
        problem = take(run_dir, stack, patience) if world.is_main else ""
        if problem := gather_objects(problem, world)[0]:
            raise UserError(problem)
        yield


def check_same_run(config: PretrainConfig) -> None:
    """Raise UserError if the run folder holds checkpoints of a configuration that computes something else, or no
    run.
    """
    _check_run_folder(config.run_dir)
    path = config.run_dir / "config.yaml"
    if not path.exists() or not any((config.run_dir / "checkpoints").glob("step-*")):
        return
    known, mine = _with_new_keys(read_yaml(path)), config.model_dump(mode="json")
    found = first_difference(_fixed(known, config), _fixed(mine, config))
    if found is not None:
        key, before, now = found
        why = ": its loss compares the samples of a micro-batch" if key == ACCUMULATION else ""
        raise UserError(
            f"{config.run_dir} holds a run with {key}={before}, not {now}{why}; "
            "choose a new run_dir, or restore the old value"
        )


def _with_new_keys(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a `config.yaml` with the defaults of keys that did not exist when it was written."""
    try:
        return PretrainConfig.model_validate(content).model_dump(mode="json")
    except (ValueError, UserError):
        return content


# What a folder may hold before a run begins in it: what launching it leaves, a configuration, a log, a killed writer's.
OURS = {LOCK, "jobs", "checkpoints", "metrics.jsonl", "pictures", "sweep.json"}


def _check_run_folder(folder: Path) -> None:
    """UserError for a folder of something else: a home directory, a data set, a study of fine-tuning."""
    names = names_in(folder)
    if "config.yaml" in names:
        try:
            content = read_yaml(folder / "config.yaml")
        except UserError:
            content = {}
        if {"objective", "run_dir"} <= content.keys():
            return
    others = sorted(name for name in names - OURS if name == "config.yaml" or Path(name).suffix not in HARMLESS)
    if others:
        raise UserError(
            f"{folder} is no run folder of a pre-training: it holds {', '.join(others[:3])}"
            f"{' ...' if len(others) > 3 else ''}; choose a new or an empty run_dir"
        )


def claim(config: PretrainConfig) -> None:
    """Write the resolved configuration into the run folder."""
    path = config.run_dir / "config.yaml"
    try:
        write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    except OSError as error:
        raise UserError(f"cannot write to the run folder {config.run_dir}: {error.strerror}") from error


def _fixed(content: dict[str, Any], config: PretrainConfig) -> dict[str, Any]:
    """What decides the numbers; `accumulation`, at an equal global batch, only where samples are compared."""
    kept = {key: _comparable(value) for key, value in content.items() if key not in FREE_TO_CHANGE}
    if not config.objective.compares_samples and isinstance(kept.get("engine"), dict):
        kept["engine"].pop("accumulation", None)
    return kept


def _comparable(value: Any) -> Any:
    """Without what changes the speed or the place of the same numbers."""
    if isinstance(value, dict):
        return {k: _comparable(v) for k, v in value.items() if k not in INDIFFERENT}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return value
