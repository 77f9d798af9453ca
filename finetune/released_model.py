"""A released model at work as it is: the specification of its segmentation, from what its description says."""

from pydantic import ValidationError

from scanfoundry.backbones.models.description import RECONSTRUCTION, HeadInfo, ReleaseInfo
from scanfoundry.backbones.models.release import Release
from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D, Spacing3D
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.cases.appearance import Profile
from scanfoundry.finetune.config.study import InferenceConfig
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.plan import Fingerprint, Plan
from scanfoundry.finetune.spec import Spec

ZSCORED_CT = "nonct"  # the modality of CT that is z-scored, as nnU-Net calls it
SEGMENTATION = "segmentation"
# What is known of the training scans of such a model: they hold air in Hounsfield units.
CT_PROFILE = Profile(
    scans=1, modalities=["ct"], ct=1.0, low=(-1e4, 0.0), high=(0.0, 1e5), levels=1, flat=1.0, coloured=0.0
)  # fmt: skip


def spec_of_release(name: str, release: Release) -> Spec:
    """The specification of a release that segments.

    Args:
        name: of the model, for messages.
        release: the model.

    Raises:
        UserError: it has no head that can predict by itself, or its description lacks what a prediction needs.
    """
    info, finetune = release.info, f"scanfoundry finetune RECIPE checkpoint={name}"
    head = _named_head(name, release, finetune)
    if head.patch is None or info.spacing_mm is None or head.modality == "unknown":
        lacking = "patch" if head.patch is None else "spacing_mm" if info.spacing_mm is None else "modality"
        raise UserError(f"{name} does not say its {lacking}, so it cannot predict as it is: fine-tune it ({finetune})")
    if info.backbone.in_channels != 1:
        raise UserError(
            f"{name} takes {info.backbone.in_channels} channels, which nothing names: fine-tune it ({finetune})"
        )
    try:
        return Spec(
            task=SegmentationTask(),
            classes=head.classes,
            modality=head.modality,
            profiles=[CT_PROFILE] if head.modality == ZSCORED_CT else [],
            intensity=IntensityConfig.model_validate(info.intensity),
            backbone=info.backbone,
            plan=_plan(name, info, head.patch, info.spacing_mm),
            inference=InferenceConfig(),
            trained={"released": info.objective or "unknown"},
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{name}: {where}: {first['msg']}; copy or install the model again") from error


def _named_head(name: str, release: Release, finetune: str) -> HeadInfo:
    """The head's description, whose classes have names."""
    head = release.info.head
    if head is None or "head" not in release.parts or head.task == RECONSTRUCTION:
        what = "its head reconstructs voxels" if head and "head" in release.parts else "it has no head"
        raise UserError(f"{name} is a pre-trained encoder, which predicts nothing ({what}): fine-tune it ({finetune})")
    if head.task != SEGMENTATION:
        raise UserError(f"{name} is a release for {head.task}; only segmentations predict as they are ({finetune})")
    if not head.classes:
        raise UserError(
            f"the classes of {name} have no names, so it predicts nothing as it is: fine-tune it "
            f"({finetune} 'checkpoint_classes=[liver, ...]', in their order)"
        )
    if "decoder" not in release.parts:
        raise UserError(f"{name} has a head without a decoder; copy or install the model again")
    return head


def _plan(name: str, info: ReleaseInfo, patch: Size3D, spacing: Spacing3D) -> Plan:
    divisor = build(info.backbone).size_divisor(patch[0] == 1)
    if any(size % step for size, step in zip(patch, divisor, strict=True)):
        raise UserError(f"{name}: its patch {patch} is no multiple of {divisor}; copy or install the model again")
    shape = (float(patch[0]), float(patch[1]), float(patch[2]))
    known = Fingerprint(scans=0, shape=shape, spacing=spacing, is_2d=patch[0] == 1)
    return Plan(spacing=spacing, patch=patch, batch=1, fingerprint=known)
