"""From a configuration to a study with everything settled: cases, split, plan, specification."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from scanfoundry.backbones.models.release import Release
from scanfoundry.backbones.registry import BackboneConfig, build
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.cases.appearance import Profile, profile_of
from scanfoundry.finetune.checks.check import Checked, check_cases
from scanfoundry.finetune.checks.scan_checks import check_grids, check_modalities
from scanfoundry.finetune.config.recipes import Arm
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.formats import CaseList
from scanfoundry.finetune.formats.discover import known_cases
from scanfoundry.finetune.plan import Plan, settle_plan
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.adapting import adapt_checkpoint, check_same_but_kernel
from scanfoundry.finetune.study.colour import input_channels
from scanfoundry.finetune.study.notes import note, note_left_out
from scanfoundry.finetune.study.results import left_out
from scanfoundry.finetune.study.split import Split, shots, split, trial_cases
from scanfoundry.finetune.study.starts import Start, read_releases
from scanfoundry.finetune.study.teacher import TeacherFacts, check_teacher, read_teacher, without_teachers_patients
from scanfoundry.finetune.study.trial import TrialName
from scanfoundry.finetune.training.layers import check_layers


def trial_names(config: FinetuneConfig) -> list[TrialName]:
    """All trials of a study, in the order they run."""
    return [TrialName(arm, k, seed) for k in config.shots for seed in config.seeds for arm in config.arms]


def check_lists(config: FinetuneConfig) -> None:
    """Check what can be checked without reading a scan: checkpoints, teacher, lists of cases, and the split.

    Raises:
        UserError: what would end the study as it starts.
    """
    releases = read_releases(config)
    read_teacher(config.distil)
    found = known_cases(config.data, config.task)
    with found.mistakes.instead():
        split(found, config.split, [patient for each in releases.values() for patient in each.patients])
    found.mistakes.raise_if_any()


@dataclass(frozen=True)
class Study:
    """Everything settled before the first step of training."""

    config: FinetuneConfig
    found: CaseList
    sides: Split
    spec: Spec
    starts: Mapping[str, Start]  # by the names of the checkpoints
    checked: Checked  # of the cases that are used
    teacher: TeacherFacts | None = None  # of distillation

    @property
    def names(self) -> list[TrialName]:
        """All trials, in the order they run."""
        return trial_names(self.config)

    def start_of(self, arm: Arm) -> Start | None:
        """What an arm starts from; None from scratch."""
        return self.starts[arm.start] if arm.pretrained else None

    @property
    def best(self) -> TrialName:
        """The trial whose model is kept: most shots, the first recipe, the first seed; no test case has a say."""
        seed = self.config.seeds[0]
        most = max(self.config.shots, key=lambda k: len(shots(self.sides.pool, k, seed)))
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
    releases = read_releases(config)
    first = next(iter(releases.values()), None)
    teacher = read_teacher(config.distil)
    found = known_cases(config.data, config.task)
    if len(found.channels) == 1 and config.augmentation.channel_dropout:
        raise UserError("augmentation.channel_dropout does nothing here: there is one channel; leave it out")
    with found.mistakes.instead():
        sides = split(found, config.split, [patient for each in releases.values() for patient in each.patients])
        checked = known or _checked(config, found, sides)
    found.mistakes.raise_if_any()
    for release in releases.values():
        told = release.info.patient_free or release.info.sites == {found.site}
        sides = replace(sides, comparable=sides.comparable and told)
    sides = replace(sides, teacher=without_teachers_patients(config, teacher, sides, found))
    check_modalities(checked, found.channels, found.modalities)
    if notes:
        note_left_out(left_out(config, sides, found))
    backbone = _backbone(config, first, teacher, found, _coloured(checked, sides), notes)
    plan = _plan(config, sides, checked, backbone)
    starts = {
        name: Start(*adapt_checkpoint(config, str(config.starts[name]), release, plan, notes))
        for name, release in releases.items()
    }
    spec = _spec(config, found, sides, checked, first, backbone, plan)
    if first is None and teacher is not None:
        spec = spec.model_copy(update={"intensity": teacher.intensity})
    if teacher is not None and teacher.spec is not None:
        spec = spec.model_copy(update={"grey": teacher.spec.grey})
    check_teacher(teacher, spec)
    return Study(config, found, sides, spec, starts, checked, teacher)


def _backbone(
    config: FinetuneConfig,
    release: Release | None,
    teacher: TeacherFacts | None,
    found: CaseList,
    coloured: bool,
    notes: bool,
) -> BackboneConfig:
    """With as many input channels as there are, or as there are colours."""
    backbone = config.backbone or (release.info.backbone if release else None)
    assert backbone is not None
    if release and config.backbone:
        check_same_but_kernel(release.info.backbone, backbone, str(next(iter(config.starts.values()))))
    channels = len(found.channels)
    if channels == 1:
        model, shown = ("checkpoint", backbone) if release else ("", backbone)
        if teacher is not None and teacher.spec is not None:
            model, shown = "teacher", teacher.spec.backbone
        channels, said = input_channels(config.data.colour, shown.in_channels, coloured, model)
        if notes:
            note(said)
    elif config.data.colour:
        raise UserError(f"data.colour is of images of one channel; these have {', '.join(found.channels)}")
    return backbone.model_copy(update={"in_channels": channels})


def _coloured(checked: Checked, sides: Split) -> bool:
    """Whether most training images are in colour; no case that is tested on has a say."""
    looks = [checked.looks[case.key][0] for case in sides.pool if case.key in checked.looks]
    return sum(look is not None and look.coloured for look in looks) > len(looks) / 2


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
        grey="luminance",
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
