"""From a configuration to a study with everything settled: cases, split, plan, specification."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from scanfoundry.backbones import read_release
from scanfoundry.backbones.models.release import Release
from scanfoundry.backbones.registry import BackboneConfig, build
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.cases.appearance import Profile, profile_of
from scanfoundry.finetune.checks.check import Checked, check_cases
from scanfoundry.finetune.checks.scan_checks import check_grids, check_modalities
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.formats import CaseList
from scanfoundry.finetune.formats.discover import known_cases
from scanfoundry.finetune.plan import Plan, settle_plan
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.adapting import adapt_checkpoint, check_same_but_kernel
from scanfoundry.finetune.study.notes import note_left_out
from scanfoundry.finetune.study.results import left_out
from scanfoundry.finetune.study.split import Split, split, trial_cases
from scanfoundry.finetune.study.teacher import TeacherFacts, check_teacher, read_teacher, without_teachers_patients
from scanfoundry.finetune.study.trial import TrialName
from scanfoundry.finetune.training.layers import check_layers


@dataclass(frozen=True)
class Study:
    """Everything settled before the first step of training."""

    config: FinetuneConfig
    found: CaseList
    sides: Split
    spec: Spec
    release: Release | None
    checked: Checked  # of the cases that are used
    teacher: TeacherFacts | None = None  # of distillation
    adapted: str = ""  # what was done to the release, in a few words

    @property
    def names(self) -> list[TrialName]:
        """All trials, in the order they run."""
        c = self.config
        return [TrialName(arm, k, seed) for k in c.shots for seed in c.seeds for arm in c.arms]

    @property
    def best(self) -> TrialName:
        """The trial whose model is kept: most shots, the first recipe, the first seed; no test case has a say."""
        most = max(self.config.shots, key=lambda k: np.inf if k == "all" else k)
        return TrialName(self.config.arms[0], most, self.config.seeds[0])


def prepare(config: FinetuneConfig, notes: bool = True, known: Checked | None = None) -> Study:
    """Read the lists, check every case that is used, split and plan.

    Args:
        config: of the study.
        notes: print what takes no part.
        known: what a check of the same cases has found a moment ago; None: they are read and checked.

    Raises:
        UserError: whatever is wrong with data or configuration.
    """
    release = _release(config)
    teacher = read_teacher(config.distil)
    found = known_cases(config.data, config.task)
    if len(found.channels) == 1 and config.augmentation.channel_dropout:
        raise UserError("augmentation.channel_dropout does nothing here: there is one channel; leave it out")
    backbone = _backbone(config, release, len(found.channels))
    with found.mistakes.instead():
        sides = split(found, config.split, release.patients if release else [])
        checked = known or _checked(config, found, sides)
    found.mistakes.raise_if_any()
    if release:
        sites = {source.site for source in release.info.sources}
        sides = replace(sides, comparable=sites == {found.site})
    sides = replace(sides, teacher=without_teachers_patients(config, teacher, sides, found))
    check_modalities(checked, found.channels, found.modalities)
    if notes:
        note_left_out(left_out(config, sides, found))
    plan = _plan(config, sides, checked, backbone)
    how = ""
    if release:
        release, how = adapt_checkpoint(config, release, plan, notes)
    spec = _spec(config, found, sides, checked, release, backbone, plan)
    if release is None and teacher is not None:
        spec = spec.model_copy(update={"intensity": teacher.intensity})
    check_teacher(teacher, spec)
    return Study(config, found, sides, spec, release, checked, teacher, how)


def _release(config: FinetuneConfig) -> Release | None:
    """The checkpoint, with the names of its classes as its file or else the study gives them."""
    if config.checkpoint is None:
        return None
    release, given = read_release(config.checkpoint), config.checkpoint_classes
    head = release.info.head
    if not given:
        return release
    if head is None or "head" not in release.parts:
        raise UserError(f"{config.checkpoint} has no head: leave out checkpoint_classes")
    if head.classes and head.classes != given:
        named = ", ".join(head.classes[:5])
        raise UserError(f"{config.checkpoint} names its classes itself ({named}...): leave out checkpoint_classes")
    if head.task == "segmentation" and not any(len(given) + 1 in w.shape[:2] for w in release.parts["head"].values()):
        raise UserError(f"checkpoint_classes names {len(given)} classes; the head of {config.checkpoint} has others")
    info = release.info.model_copy(update={"head": head.model_copy(update={"classes": given})})
    return replace(release, info=info)


def _backbone(config: FinetuneConfig, release: Release | None, channels: int) -> BackboneConfig:
    backbone = config.backbone or (release.info.backbone if release else None)
    assert backbone is not None
    if release and config.backbone:
        check_same_but_kernel(release.info.backbone, backbone, str(config.checkpoint))
    return backbone if channels == 1 else backbone.model_copy(update={"in_channels": channels})


def _checked(config: FinetuneConfig, found: CaseList, sides: Split) -> Checked:
    """What was found when the data were checked: the cases that are used, also those without their label; all of them
    where the values of the label maps are the classes."""
    trials = [trial_cases(sides, k, seed, config.self_training) for k in config.shots for seed in config.seeds]
    used = {case.key for trial in trials for case in trial.train + trial.test}
    cases = found.cases if found.classes is None else [case for case in found.cases if case.key in used]
    others = {case.key: case for trial in trials for case in trial.unlabelled}
    return check_cases([*cases, *others.values()], config.task, found.classes, found.mistakes)


def _plan(config: FinetuneConfig, sides: Split, checked: Checked, backbone: BackboneConfig) -> Plan:
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        encoder = build(backbone)
    check_layers(encoder, config.schedule.layer_decay)
    plan = settle_plan(config.run_dir / "plan.json", sides.pool, checked.grids, config.plan, encoder)
    if config.task.windows:  # other tasks scale each scan to fit the patch
        check_grids(checked, plan.spacing)
    return plan


def _spec(
    config: FinetuneConfig,
    found: CaseList,
    sides: Split,
    checked: Checked,
    release: Release | None,
    backbone: BackboneConfig,
    plan: Plan,
) -> Spec:
    """What all models of the study have in common."""
    return Spec(
        task=config.task,
        classes=(found.classes or []) if checked.classes is None else checked.classes,
        values=checked.values,
        channels=found.channels,
        modality=found.modalities[0],
        modalities=found.modalities if len(set(found.modalities)) > 1 else [],
        profiles=_profiles(checked, [case.key for case in sides.pool], len(found.channels)),
        intensity=IntensityConfig.model_validate(release.info.intensity) if release else IntensityConfig(),
        backbone=backbone,
        plan=plan,
        inference=config.inference,
        flip_axes=config.augmentation.flip_axes,
        loss=config.loss,
        probe=config.probe,
    )


def _profiles(checked: Checked, pool: list[str], channels: int) -> list[Profile]:
    """How the scans that are trained on look, by channel; no case that is tested on has a say."""
    used = [checked.looks[key] for key in pool if key in checked.looks]
    each = [[looks[number] for looks in used] for number in range(channels)]
    there = [[look for look in looks if look is not None] for looks in each]
    return [profile_of(looks) for looks in there] if all(there) else []
