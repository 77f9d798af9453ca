"""Runs the trials of a prepared study, or reads those that are finished."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from scanfoundry.backbones.models.description import SourceRecord
from scanfoundry.backbones.transfer.stem import with_channels
from scanfoundry.finetune.config.recipes import PROBES
from scanfoundry.finetune.model_file import Seen, pick_device
from scanfoundry.finetune.study.budget import Budget
from scanfoundry.finetune.study.claims import claimed
from scanfoundry.finetune.study.context import TrialContext
from scanfoundry.finetune.study.display import ShowsStudy
from scanfoundry.finetune.study.prepare import Study
from scanfoundry.finetune.study.run_trial import run_trial
from scanfoundry.finetune.study.sample_cache import GB, SAMPLES, SampleCache
from scanfoundry.finetune.study.split import TrialCases, trial_cases
from scanfoundry.finetune.study.trial import RESULT, TRIALS, TrialName, TrialResult, digest_of_trial, stored_result
from scanfoundry.finetune.training.code_digest import with_code
from scanfoundry.finetune.training.features import FeatureStore, digest_of
from scanfoundry.finetune.training.interrupts import NOTHING, Stop, Stopped
from scanfoundry.finetune.training.saving import PROGRESS, SnapshotFolder
from scanfoundry.finetune.training.setup import TrainProgress, TrainSetup
from scanfoundry.finetune.training.transfer import StartWeights


@dataclass(frozen=True)
class Trial:
    """One trial of a study, with all that decides it.

    digest: of all that the result depends on. origin: the checksum of its checkpoint and what was done to that, or an
    empty string.
    """

    name: TrialName
    folder: Path
    digest: str
    keep_weights: bool
    origin: str
    cases: TrialCases

    def finished(self) -> TrialResult | None:
        """Its result, where that is there, with its weights if they are kept."""
        return stored_result(self.folder, self.digest, self.keep_weights)

    def is_of_another(self) -> bool:
        """Whether a finished trial of this name is there, of other data, another plan or checkpoint."""
        return (self.folder / RESULT).exists() and stored_result(self.folder, self.digest, False) is None


class TrialRunner:
    """Runs the trials of one study in this process."""

    def __init__(self, study: Study, stop: Stop, budget: Budget | None) -> None:
        self._study, self._stop, self._budget = study, stop, budget
        self._device = pick_device(study.config.device)

    def trial(self, name: TrialName) -> Trial:
        """The trial of that name."""
        study, config = self._study, self._study.config
        cases = trial_cases(study.sides, name.shots, name.seed, config.self_training)
        start = study.start_of(name.arm)
        origin = start.release.info.weights_sha256 if start else ""
        origin += f" {start.adapted}" if start and start.adapted else ""
        if study.teacher and name.arm.distilled:
            origin += study.teacher.weights_sha256
        digest = digest_of_trial(config, study.spec, name.arm, cases, study.checked, origin)
        keep_weights = config.keep_weights == "all" or name == study.best
        return Trial(name, config.run_dir / TRIALS / name.folder, digest, keep_weights, origin, cases)

    def _cache(self, display: ShowsStudy) -> SampleCache:
        """The samples of all trials, without those of another plan; a single trial reads each case once anyway."""
        config = self._study.config
        folder = config.run_dir / SAMPLES if len(self._study.names) > 1 else None
        cache = SampleCache(folder, self._study.checked, config.sample_cache_gb * GB, display.log)
        cache.tidy(self._study.spec)
        return cache

    def run_all(self, display: ShowsStudy) -> list[TrialResult]:
        """The results of all trials, in their order.

        Raises:
            Stopped: a signal came; what was running is saved.
        """
        results, samples = [], self._cache(display)
        for name in self._study.names:
            results.append(self._run_or_read(name, samples, display))
            self._over(name, results[-1], display)
        return results

    def run_unclaimed(self, display: ShowsStudy) -> None:
        """Run trials that are neither finished nor run by another process, until there is none.

        Raises:
            Stopped: as `run_all`.
        """
        samples, again = self._cache(display), True
        while again:  # what another process left when it was killed may lie behind
            again = False
            for trial in map(self.trial, self._study.names):
                with claimed(self._study.config.run_dir, trial.name.folder) as ours:
                    if ours and trial.finished() is None:
                        again, result = True, self._run(trial, samples, display)
                        if self._budget:
                            self._budget.done()
                        self._over(trial.name, result, display)

    def run_named(self, name: TrialName, display: ShowsStudy) -> None:
        """Run one trial, unless it is finished or another process runs it.

        Raises:
            Stopped: as `run_all`.
        """
        trial = self.trial(name)
        with claimed(self._study.config.run_dir, name.folder) as ours:
            if ours and trial.finished() is None:
                self._over(name, self._run(trial, self._cache(display), display), display)

    def finished(self) -> list[TrialResult] | None:
        """The results of all trials, in their order; None while one is missing."""
        found = [self.trial(name).finished() for name in self._study.names]
        results = [result for result in found if result is not None]
        return results if len(results) == len(found) else None

    def _over(self, name: TrialName, result: TrialResult, display: ShowsStudy) -> None:
        """A trial is finished: a signal that came too late to save it ends the study here."""
        display.finished(name.folder, result)
        self._stop.at_once = NOTHING
        if self._stop.asked is not None:
            raise Stopped(self._stop.asked, NOTHING)

    def _run_or_read(self, name: TrialName, samples: SampleCache, display: ShowsStudy) -> TrialResult:
        trial = self.trial(name)
        result = trial.finished()
        if result is None:
            result = self._run(trial, samples, display)
        else:
            shutil.rmtree(trial.folder / PROGRESS, ignore_errors=True)
            if self._budget:
                self._budget.spent_before(result.spent)
        if self._budget:
            self._budget.done()
        return result

    def _run(self, trial: Trial, samples: SampleCache, display: ShowsStudy) -> TrialResult:
        study, config, name = self._study, self._study.config, trial.name
        if trial.is_of_another():
            display.log(f"{name.folder}: finished before with other data, plan or checkpoint; trained anew")
        shown = display.begin(name.folder, None if config.budget else config.schedule.steps, len(trial.cases.test))
        code = with_code(f"{trial.digest} {self._device.type}")
        saved = SnapshotFolder(trial.folder / PROGRESS, code, config.checkpoint_minutes, self._stop, display.log)
        if self._budget:
            self._budget.spent_before(saved.spent_before)
        context = TrialContext(
            trial.folder,
            trial.digest,
            trial.keep_weights,
            self._seen(trial),
            self._setup(name),
            self._budget,
            samples,
            self._features(trial),
            TrainProgress(shown.step),
            shown.tested,
            saved,
            study.teacher.recorded(config.distil) if study.teacher and name.arm.distilled else None,
        )
        start = self._start(name)
        result = run_trial(config, study.spec, name, trial.cases, study.checked, start, context)
        shown.end()
        return result

    def _start(self, name: TrialName) -> StartWeights | None:
        """The parts of the checkpoint that are wanted, its encoder for the channels of the study."""
        start = self._study.start_of(name.arm)
        if start is None:
            return None
        release = start.release
        encoder, _ = with_channels(release.encoder, release.info.backbone, self._study.spec.backbone.in_channels)
        wanted = {part: weights for part, weights in release.parts.items() if part in self._study.config.transfer}
        return StartWeights(wanted | {"encoder": encoder}, release.info.head, start.adapted)

    def _seen(self, trial: Trial) -> Seen:
        """The patients that a trial trains on, and those that the checkpoint has seen."""
        mine = [case.patient for case in (*trial.cases.train, *trial.cases.unlabelled)]
        if self._study.teacher and trial.name.arm.distilled:
            mine += self._study.teacher.patients or ()
        here = SourceRecord(name="fine-tuning", manifest_sha256="", site=self._study.found.site)
        start = self._study.start_of(trial.name.arm)
        if start is None:
            return Seen(mine, (here,))
        info = start.release.info
        patients, sources = [*mine, *start.release.patients], (*info.sources, here)
        return Seen(patients, sources, info.licence, info.citation, info.patients_withheld)

    def _setup(self, name: TrialName) -> TrainSetup:
        config = self._study.config
        settings = config.schedule, config.augmentation, config.validation, config.self_training
        return TrainSetup(name.arm, name.seed, *settings, self._device)

    def _features(self, trial: Trial) -> FeatureStore:
        """The frozen features of this checkpoint at this plan, which all trials share."""
        if trial.name.arm.recipe not in PROBES:
            return FeatureStore(None)
        study, checked = self._study, self._study.checked
        decided = (study.spec.model_dump_json(), study.config.augmentation.model_dump_json())
        folder = study.config.run_dir / "features" / digest_of(trial.origin, with_code("\n".join(decided)))
        contents = {key: f"{digest:08x}{checked.headers[key]:08x}" for key, digest in checked.digests.items()}
        return FeatureStore(folder, contents)
