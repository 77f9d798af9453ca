"""The configuration in a run folder: written once a run starts, held against the one that would continue it."""

import os
from typing import Any

import yaml

from scanforge.configs.errors import UserError
from scanforge.configs.loading import read_yaml
from scanforge.pretrain.config import FREE_TO_CHANGE, PretrainConfig


def refuse_another_run(config: PretrainConfig) -> None:
    """UserError if the run folder holds checkpoints of a configuration that computes something else."""
    path = config.run_dir / "config.yaml"
    if not path.exists() or not any((config.run_dir / "checkpoints").glob("step-*")):
        return
    mine, theirs = config.model_dump(mode="json"), read_yaml(path)
    for key in sorted(set(mine) - FREE_TO_CHANGE):
        if _comparable(mine[key]) != _comparable(theirs.get(key)):
            raise UserError(
                f"{config.run_dir} holds a run with another '{key}' ({theirs.get(key)}); "
                "choose a new run_dir or restore the old value"
            )


def claim(config: PretrainConfig) -> None:
    """Write the resolved configuration into the run folder."""
    path = config.run_dir / "config.yaml"
    try:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write to the run folder {config.run_dir}: {error.strerror}") from error


def _comparable(value: Any) -> Any:
    """Workers and the ring change the speed of the stream, never its content; a folder may have moved."""
    if isinstance(value, dict):
        return {k: _comparable(v) for k, v in value.items() if k not in ("workers", "ring", "path")}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return value
