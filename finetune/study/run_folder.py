"""A study's run folder: one study at a time, one configuration, and nothing else in it."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_text
from scanfoundry.configs.loading import read_yaml
from scanfoundry.configs.parsing.differences import Difference, first_difference
from scanfoundry.datasets.storage.run_folder import HARMLESS, LOCK, names_in, take
from scanfoundry.finetune.config.study import FinetuneConfig

CONFIG = "config.yaml"
OURS = "plan.json"  # what the first start of a study writes first
# May differ between a study and its continuation: what there is more of, where it runs, how it is shown.
FREE_TO_CHANGE = {
    "run_dir", "shots", "seeds", "recipes", "compare_scratch", "bootstrap", "keep_weights", "checkpoint_minutes",
    "device", "sample_cache_gb", "processes",
}  # fmt: skip
PLACES = {"path", "images", "labels", "key_file"}
PATIENCE = 3.0  # seconds that a study waits for one that is about to end
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}  # a person's to mend


class InUse(UserError):
    """Another process is at work in the run folder."""


@contextmanager
def taken(config: FinetuneConfig) -> Iterator[None]:
    """Hold the run folder for as long as the context lasts.

    Raises:
        InUse: somebody else has it, or it cannot be locked.
        UserError: it is of something else or of another configuration.
    """
    check_same_study(config)
    fresh = not config.run_dir.exists()
    with ExitStack() as stack:
        if problem := take(config.run_dir, stack, PATIENCE):
            raise InUse(problem)
        check_same_study(config)  # whoever was at work may just have ended
        for leftover in config.run_dir.glob("**/.*.part"):
            leftover.unlink(missing_ok=True)  # of a writer that was killed
        try:
            yield
        finally:
            if fresh and {path.name for path in config.run_dir.iterdir()} <= {LOCK}:  # a mistake, before any work
                (config.run_dir / LOCK).unlink(missing_ok=True)
                config.run_dir.rmdir()


def check_same_study(config: FinetuneConfig) -> None:
    """UserError where the folder holds no study, or one that computes something else."""
    folder = config.run_dir
    names = names_in(folder)
    theirs = _of_a_study(folder / CONFIG) if CONFIG in names else None
    if theirs is None and OURS not in names:
        others = sorted(name for name in names - {LOCK} if name == CONFIG or Path(name).suffix not in HARMLESS)
        if others:
            raise UserError(
                f"{folder} is no run folder of a study: it holds {', '.join(others[:3])}"
                f"{' ...' if len(others) > 3 else ''}; choose a new or an empty run_dir"
            )
    if theirs is not None and any((folder / "cells").glob("*/cell.json")):
        found = first_difference(_fixed(theirs), _fixed(config.model_dump(mode="json")))
        if found is not None:
            raise UserError(_holds(folder, found))


def check_same_sources(config: FinetuneConfig) -> None:
    """UserError, where finished trials are of other data or another checkpoint: if the paths of these changed too."""
    theirs = _of_a_study(config.run_dir / CONFIG)
    if theirs is None:
        return
    found = first_difference(_places(theirs), _places(config.model_dump(mode="json")))
    if found is not None:
        raise UserError(_holds(config.run_dir, found))


def _holds(folder: Path, found: Difference) -> str:
    key, before, now = found
    return f"{folder} holds a study with {key}={before}, not {now}; choose a new run_dir, or restore the old value"


def claim(config: FinetuneConfig) -> None:
    """Write the resolved configuration into the run folder."""
    write_text(config.run_dir / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def raise_if_unwritable(folder: Path, error: OSError) -> NoReturn:
    """UserError for a full or read-only disk; what a person cannot mend goes on as it is."""
    if error.errno not in UNWRITABLE:
        raise error
    raise UserError(
        f"cannot write {error.filename or folder}: {error.strerror}; once that is mended, the same command goes on "
        "from what is saved"
    ) from error


def _of_a_study(path: Path) -> dict[str, Any] | None:
    """The configuration in a run folder, or None where the file is somebody else's."""
    try:
        content = read_yaml(path) if path.is_file() else {}
    except UserError:
        return None
    if not {"task", "data", "run_dir"} <= content.keys():
        return None
    try:
        return FinetuneConfig.model_validate(content).model_dump(mode="json")
    except ValidationError:
        return content  # of another version


def _fixed(content: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers. Where data and checkpoint lie does not: their content does (`digest_of_trial`)."""
    kept = {key: value for key, value in content.items() if key not in FREE_TO_CHANGE | {"checkpoint"}}
    return kept | {"data": {key: value for key, value in kept["data"].items() if key not in PLACES}}


def _places(content: dict[str, Any]) -> dict[str, Any]:
    """Where data and checkpoint lie."""
    data = {key: value for key, value in content["data"].items() if key in PLACES}
    return {"data": data, "checkpoint": content.get("checkpoint")}
