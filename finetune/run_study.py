"""`run(config)`: the study from data to report."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scanfoundry.backbones.models.release import INFO, PATIENTS, WEIGHTS
from scanfoundry.configs.files import write_json, write_whole
from scanfoundry.datasets.readers.scratch import scratch_below
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.report.page import write_report
from scanfoundry.finetune.study.budget import Budget
from scanfoundry.finetune.study.claims import CLAIMS
from scanfoundry.finetune.study.display import StudyDisplay
from scanfoundry.finetune.study.notes import note_results
from scanfoundry.finetune.study.prepare import Study, prepare
from scanfoundry.finetune.study.results import Results, summarise
from scanfoundry.finetune.study.run_folder import check_same_sources, claim, raise_if_unwritable, taken
from scanfoundry.finetune.study.runner import TrialRunner
from scanfoundry.finetune.study.sample_cache import SAMPLES
from scanfoundry.finetune.study.trial import TRIALS, TrialResult
from scanfoundry.finetune.study.workers import run_in_processes
from scanfoundry.finetune.training.interrupts import Stop


@dataclass(frozen=True)
class RunResult:
    """Where a study's output lies."""

    run_dir: Path
    report: Path
    results: Path
    model: Path  # the folder that `predict` takes


@scratch_below("config.run_dir")
def run(config: FinetuneConfig) -> RunResult:
    """Run every trial that is not finished yet; write plan.json, results.json, report.html and the best model.

    The same configuration gives the same numbers; a study that was stopped goes on within the trial that it was in.

    Raises:
        UserError: a mistake in data or configuration, before anything is trained; the folder holds something else;
            or nothing can be written.
        Stopped: Ctrl-C or SIGTERM came; what was running is saved.
    """
    folder = config.run_dir
    with Stop() as stop, taken(config):
        try:
            study = prepare(config)
            runner = TrialRunner(study, stop, Budget(config.budget, len(study.names)) if config.budget else None)
            if any(runner.trial(name).is_of_another() for name in study.names):
                check_same_sources(config)
            claim(config)
            with StudyDisplay(len(study.names)) as display:
                run_in_processes(study, runner, stop, display)
                trials = runner.run_all(display)
            results, report = finish(study, trials)
        except OSError as error:
            raise_if_unwritable(folder, error)
    note_results(results)
    return RunResult(folder, report, folder / "results.json", folder)


def finish(study: Study, trials: list[TrialResult]) -> tuple[Results, Path]:
    """Write results, report and the best model of a study whose trials are all there; the caller holds its folder.

    Returns:
        The results, and the path of the report.
    """
    config, folder = study.config, study.config.run_dir
    teacher = study.teacher.recorded(config.distil) if study.teacher else None
    results = summarise(config, study.spec, study.sides, study.found, trials, study.checked, teacher)
    write_json(folder / "results.json", results.model_dump(mode="json"))
    best = folder / TRIALS / study.best.folder
    for name in (WEIGHTS, PATIENTS, INFO):
        write_whole(folder / name, partial(shutil.copyfile, best / name))
    report = write_report(folder, results, study.best)
    for name in (SAMPLES, CLAIMS):  # whole scans are nothing to leave in a finished folder
        shutil.rmtree(folder / name, ignore_errors=True)
    return results, report
