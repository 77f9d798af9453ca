"""The models that the arms of a study start from."""

from dataclasses import dataclass, replace

from scanfoundry.backbones import read_release
from scanfoundry.backbones.models.release import Release
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.study import FinetuneConfig


@dataclass(frozen=True)
class Start:
    """A checkpoint as the study takes it."""

    release: Release
    adapted: str = ""  # what was done to it, in a few words


def read_releases(config: FinetuneConfig) -> dict[str, Release]:
    """The checkpoints by their names.

    Raises:
        UserError: one cannot be read, or they are of different backbones or see scans differently: then no arm could
            be compared with another.
    """
    found = {name: _read(config, str(path)) for name, path in config.starts.items()}
    for name, release in found.items():
        _check_same(next(iter(found.items())), name, release)
    return found


def _check_same(first: tuple[str, Release], name: str, release: Release) -> None:
    known, (mine, theirs) = first[0], (first[1].info, release.info)
    for what, one, other in (
        ("another backbone", mine.backbone, theirs.backbone),
        ("scans of other intensities", mine.intensity, theirs.intensity),
    ):
        if one != other:
            raise UserError(
                f"checkpoint '{name}' has {what} than '{known}' ({other} and {one}): compare them in a study each"
            )


def _read(config: FinetuneConfig, name: str) -> Release:
    """The checkpoint, with the names of its classes as its file or else the study gives them."""
    release, given = read_release(name), config.checkpoint_classes
    head = release.info.head
    if not given:
        return release
    if head is None or "head" not in release.parts:
        raise UserError(f"{name} has no head: leave out checkpoint_classes")
    if head.classes and head.classes != given:
        named = ", ".join(head.classes[:5])
        raise UserError(f"{name} names its classes itself ({named}...): leave out checkpoint_classes")
    if head.task == "segmentation" and not any(len(given) + 1 in w.shape[:2] for w in release.parts["head"].values()):
        raise UserError(f"checkpoint_classes names {len(given)} classes; the head of {name} has others")
    info = release.info.model_copy(update={"head": head.model_copy(update={"classes": given})})
    return replace(release, info=info)
