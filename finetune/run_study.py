"""`run(config)`: the study from data to report."""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from scanfoundry.backbones import read_release
from scanfoundry.backbones.models.release import Release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.transfer.stem import with_channels
from scanfoundry.configs.console import Console
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_json, write_whole
from scanfoundry.configs.text import printable
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.datasets.readers.scratch import scratch_below
from scanfoundry.finetune.cases.appearance import Profile, profile_of
from scanfoundry.finetune.checks.check import Checked, check_cases
from scanfoundry.finetune.checks.scan_checks import check_grids, check_modalities
from scanfoundry.finetune.config.recipes import PROBES
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.formats import CaseList
from scanfoundry.finetune.formats.discover import known_cases
from scanfoundry.finetune.model_file import INFO, WEIGHTS, pick_device
from scanfoundry.finetune.plan import settle_plan
from scanfoundry.finetune.report.page import write_report
from scanfoundry.finetune.study.budget import Budget
from scanfoundry.finetune.study.display import StudyDisplay
from scanfoundry.finetune.study.results import Results, left_out, summarise
from scanfoundry.finetune.study.run_folder import check_same_sources, claim, raise_if_unwritable, taken
from scanfoundry.finetune.study.split import Split, TrialCases, cell_cases, split
from scanfoundry.finetune.study.trials import RESULT, TrialContext, TrialName, TrialResult, digest, run_cell, stored
from scanfoundry.finetune.task import Spec
from scanfoundry.finetune.training.features import FeatureStore, mark_of
from scanfoundry.finetune.training.interrupts import NOTHING, Stop, Stopped
from scanfoundry.finetune.training.loop import TrainProgress, TrainSetup
from scanfoundry.finetune.training.saving import PROGRESS, Saved, code_mark


@dataclass(frozen=True)
class RunResult:
    """Where a study's output lies."""

    run_dir: Path
    report: Path
    results: Path
    model: Path  # the folder that `predict` takes


@dataclass(frozen=True)
class Study:
    """Everything settled before the first step of training."""

    config: FinetuneConfig
    found: CaseList
    sides: Split
    spec: Spec
    release: Release | None
    checked: Checked  # of the cases that are used

    @property
    def names(self) -> list[TrialName]:
        """All cells, in the order they run."""
        c = self.config
        return [TrialName(arm, k, seed) for k in c.shots for seed in c.seeds for arm in c.arms]

    @property
    def best(self) -> TrialName:
        """The cell whose model is kept: most shots, the first recipe, the first seed; no test case has a say."""
        most = max(self.config.shots, key=lambda k: np.inf if k == "all" else k)
        return TrialName(self.config.arms[0], most, self.config.seeds[0])


@scratch_below("config.run_dir")
def run(config: FinetuneConfig) -> RunResult:
    """Run every cell that is not finished yet; write plan.json, results.json, report.html and the best model.

    The same configuration gives the same numbers; a study that was stopped goes on within the cell that it was in.
    Raises UserError for mistakes in data or configuration before anything is trained, for a folder that holds
    something else, and where nothing can be written; Stopped after Ctrl-C or SIGTERM, when what runs is saved.
    """
    folder = config.run_dir
    with Stop() as stop, taken(config):
        try:
            study = prepare(config)
            runner = _Runner(study, stop)
            if any(runner.is_of_another(name) for name in study.names):
                check_same_sources(config)
            claim(config)
            cells = _run_cells(study, runner, stop)
            results = summarise(study.config, study.spec, study.sides, study.found, cells, study.checked)
            write_json(folder / "results.json", results.model_dump(mode="json"))
            best = folder / "cells" / study.best.folder
            for name in (WEIGHTS, INFO):
                write_whole(folder / name, partial(shutil.copyfile, best / name))
            report = write_report(folder, results, study.best)
        except OSError as error:
            raise_if_unwritable(folder, error)
    _tell(results)
    return RunResult(folder, report, folder / "results.json", folder)


def prepare(config: FinetuneConfig) -> Study:
    """Read the lists, split, plan; UserError for whatever is wrong with them."""
    release = read_release(config.checkpoint) if config.checkpoint else None
    backbone = release.info.backbone if release else config.backbone
    assert backbone is not None
    found = known_cases(config.data, config.task)
    if len(found.channels) == 1 and config.augmentation.channel_dropout:
        raise UserError("augmentation.channel_dropout does nothing here: there is one channel; leave it out")
    if len(found.channels) > 1:
        backbone = backbone.model_copy(update={"in_channels": len(found.channels)})
    with found.mistakes.instead():
        sides = split(found, config.split, release.patients if release else [])
        checked = _checked(config, found, sides)
    found.mistakes.tell()
    if release:
        sites = {source.site for source in release.info.sources}
        sides = replace(sides, comparable=sites == {found.site})
    check_modalities(checked, found.channels, found.modalities)
    _tell_left_out(left_out(config, sides, found))
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        encoder = build(backbone)
    plan = settle_plan(config.run_dir / "plan.json", [case.image for case in sides.pool], config.plan, encoder)
    if config.task.windows:  # other tasks scale each scan to fit the patch
        check_grids(checked, plan.spacing)
    intensity = IntensityConfig.model_validate(release.info.intensity) if release else IntensityConfig()
    spec = Spec(
        task=config.task,
        classes=(found.classes or []) if checked.classes is None else checked.classes,
        values=checked.values,
        channels=found.channels,
        modality=found.modalities[0],
        modalities=found.modalities if len(set(found.modalities)) > 1 else [],
        profiles=_profiles(checked, [case.key for case in sides.pool], len(found.channels)),
        intensity=intensity,
        backbone=backbone,
        plan=plan,
        inference=config.inference,
        flip_axes=config.augmentation.flip_axes,
        loss=config.loss,
        probe=config.probe,
    )
    return Study(config, found, sides, spec, release, checked)


def _checked(config: FinetuneConfig, found: CaseList, sides: Split) -> Checked:
    """What was found when the data were checked: the cases that are used, also those without their label; all of them
    where the values of the label maps are the classes."""
    cells = [cell_cases(sides, k, seed, config.self_training) for k in config.shots for seed in config.seeds]
    used = {case.key for cell in cells for case in cell.train + cell.test}
    cases = found.cases if found.classes is None else [case for case in found.cases if case.key in used]
    others = {case.key: case for cell in cells for case in cell.unlabelled}
    return check_cases([*cases, *others.values()], config.task, found.classes, found.mistakes)


def _profiles(checked: Checked, pool: list[str], channels: int) -> list[Profile]:
    """How the scans that are trained on look, by channel; no case that is tested on has a say."""
    used = [checked.looks[key] for key in pool if key in checked.looks]
    each = [[looks[number] for looks in used] for number in range(channels)]
    there = [[look for look in looks if look is not None] for looks in each]
    return [profile_of(looks) for looks in there] if all(there) else []


def _run_cells(study: Study, runner: "_Runner", stop: Stop) -> list[TrialResult]:
    results = []
    with StudyDisplay(len(study.names)) as display:
        for name in study.names:
            results.append(runner.run_or_read(name, display))
            display.finished(name.folder, results[-1])
            stop.at_once = NOTHING
            if stop.asked is not None:
                raise Stopped(stop.asked, NOTHING)
    return results


class _Runner:
    """Runs the cells of a study, or reads those that are there."""

    def __init__(self, study: Study, stop: Stop) -> None:
        self._study, self._stop, self._device = study, stop, pick_device(study.config.device)
        self._budget = Budget(study.config.budget, len(study.names)) if study.config.budget else None

    def is_of_another(self, name: TrialName) -> bool:
        """Whether a finished cell of this name is there, of other data, another plan or checkpoint."""
        marked = self._marked(name)
        return (marked.folder / RESULT).exists() and stored(marked.folder, marked.mark, False) is None

    def run_or_read(self, name: TrialName, display: StudyDisplay) -> TrialResult:
        """The cell's result, from its folder where it is finished there."""
        marked = self._marked(name)
        result = stored(marked.folder, marked.mark, marked.keep)
        if result is None:
            if self.is_of_another(name):
                display.say(f"{name.folder}: finished before with other data, plan or checkpoint; trained anew")
            result = self._run(name, marked, display)
        else:
            shutil.rmtree(marked.folder / PROGRESS, ignore_errors=True)
            if self._budget:
                self._budget.spent_before(result.spent)
        if self._budget:
            self._budget.done()
        return result

    def _marked(self, name: TrialName) -> "Marked":
        study, config = self._study, self._study.config
        cases = cell_cases(study.sides, name.shots, name.seed, config.self_training)
        origin = study.release.info.weights_sha256 if study.release and name.arm.pretrained else ""
        mark = digest(config, study.spec, name.arm, cases, study.checked, origin)
        keep = config.keep_weights == "all" or name == study.best
        return Marked(config.run_dir / "cells" / name.folder, mark, keep, origin, cases)

    def _run(self, name: TrialName, marked: "Marked", display: StudyDisplay) -> TrialResult:
        study, config, cases = self._study, self._study.config, marked.cases
        shown = display.begin(name.folder, None if config.budget else config.schedule.steps, len(cases.test))
        mark = code_mark(f"{marked.mark} {self._device.type}")
        saved = Saved(marked.folder / PROGRESS, mark, config.checkpoint_minutes, self._stop, display.say)
        if self._budget:
            self._budget.spent_before(saved.spent_before)
        place = TrialContext(
            marked.folder,
            marked.mark,
            marked.keep,
            self._course(name),
            self._budget,
            FeatureStore(self._features(name, marked.origin)),
            TrainProgress(shown.step),
            shown.tested,
            saved,
        )
        pretrained = None
        if study.release and name.arm.pretrained:
            given, channels = study.release, study.spec.backbone.in_channels
            pretrained, _ = with_channels(given.state_dict, given.info.backbone, channels)
        result = run_cell(config, study.spec, name, cases, pretrained, place)
        shown.end()
        return result

    def _course(self, name: TrialName) -> TrainSetup:
        config = self._study.config
        settings = config.schedule, config.augmentation, config.validation, config.self_training
        return TrainSetup(name.arm, name.seed, *settings, self._device)

    def _features(self, name: TrialName, origin: str) -> Path | None:
        """Of frozen features of this checkpoint at this plan: a folder that all cells share."""
        if name.arm.recipe not in PROBES:
            return None
        study = self._study
        decided = (study.spec.model_dump_json(), study.config.augmentation.model_dump_json())
        return study.config.run_dir / "features" / mark_of(origin, *decided)


@dataclass(frozen=True)
class Marked:
    """A cell's folder, the digest of all that decides it, whether its weights stay, its checkpoint's checksum, and its
    cases."""

    folder: Path
    mark: str
    keep: bool
    origin: str
    cases: TrialCases


def _tell_left_out(reasons: dict[str, int]) -> None:
    if reasons:
        said = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        Console(stderr=True, highlight=False).print(f"note: left out: {said}.", soft_wrap=True, markup=False)


def _tell(results: Results) -> None:
    console = Console(stderr=True, highlight=False, markup=False)  # class names may hold brackets
    for row in results.table:
        value = row.metrics[results.headline]
        interval = "" if value.low is None else f"  [{value.low:.3f}, {value.high:.3f}]"
        number = "undefined" if value.value is None else f"{value.value:.3f}"
        console.print(f"{row.arm:>10}  {row.shots!s:>4} shots  {results.headline} {number}{interval}")
    _tell_left_out(results.left_out)
    for warning in results.warnings:
        console.print(f"note: {printable(warning)}", soft_wrap=True)
