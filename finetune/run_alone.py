"""`run_alone(config, trial)`: one trial of a study whose others run in other processes, on any machine."""

from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers.scratch import kept_below
from scanfoundry.datasets.storage.run_folder import shared
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.run_study import finish
from scanfoundry.finetune.study.budget import Budget
from scanfoundry.finetune.study.display import StudyDisplay
from scanfoundry.finetune.study.prepare import prepare
from scanfoundry.finetune.study.run_folder import InUse, check_same_study, raise_if_unwritable, taken
from scanfoundry.finetune.study.runner import TrialRunner
from scanfoundry.finetune.training.interrupts import Stop


def run_alone(config: FinetuneConfig, trial: str) -> Path | None:
    """Run one trial, and write the report if it was the last one that was missing.

    The result is that of the whole study in one process. Of a time budget each trial has an even share.

    Args:
        config: of the study, which its run folder holds already.
        trial: the name of its folder.

    Returns:
        The report, if this call wrote it.

    Raises:
        UserError: a mistake in data or configuration, or nothing can be written.
        Stopped: a signal came; what was running is saved.
    """
    check_same_study(config)
    with Stop(quiet=True) as stop, kept_below(config.run_dir):
        try:
            with shared(config.run_dir):
                study = prepare(config, notes=False)
                name = next((each for each in study.names if each.folder == trial), None)
                if name is None:
                    raise UserError(f"{config.run_dir} has no trial {trial}")
                budget = Budget(config.budget / len(study.names), 1) if config.budget else None
                runner = TrialRunner(study, stop, budget)
                with StudyDisplay(1) as display:
                    runner.run_named(name, display)
            # Whoever lets go last sees all results. Two that do so at once: one writes the report, for both.
            trials = runner.finished()
            if trials is None:
                return None
            try:
                with taken(config):
                    return finish(study, trials)[1]
            except InUse:
                return None
        except OSError as error:
            raise_if_unwritable(config.run_dir, error)
