"""The checkpoint of a study for larger kernels, or for scans of the other dimension, as `adapt` says."""

from scanfoundry.backbones.models.release import Release
from scanfoundry.backbones.registry import BackboneConfig
from scanfoundry.backbones.transfer.adapt import adapted, advice
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.plan import Plan
from scanfoundry.finetune.study.notes import note


def adapt_checkpoint(
    config: FinetuneConfig, name: str, release: Release, plan: Plan, notes: bool
) -> tuple[Release, str]:
    """The checkpoint as the study wants it, and what was done in a few words.

    Args:
        config: of the study.
        name: of the checkpoint, as the user gave it.
        release: the checkpoint.
        plan: which says whether the scans are images or volumes.
        notes: print what was done, or what should be.
    """
    said = advice(release.info, config.adapt, not plan.is_2d, name)
    backbone = config.backbone or release.info.backbone
    changed, how = adapted(release, config.adapt, backbone, plan.is_2d, not plan.is_2d, name)
    if notes:
        note(said)
        note(f"checkpoint adapted: {how}" if how else "")
    return changed, how


def check_same_but_kernel(theirs: BackboneConfig, ours: BackboneConfig, name: str) -> None:
    """UserError where the run's backbone differs from the checkpoint's by more than its kernel."""
    if key := ours.differs_in(theirs, free=("kernel", "in_channels")):
        raise UserError(
            f"the checkpoint {name} has backbone.{key} {getattr(theirs, key, None)}, the run's is "
            f"{getattr(ours, key, None)}: only the kernel may differ"
        )
