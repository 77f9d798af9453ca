"""What somebody must know who reads the numbers of a study: one sentence each, for the report and the console."""

from collections.abc import Sequence

import numpy as np

from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.study.split import Split
from scanfoundry.finetune.study.trial import TrialResult
from scanfoundry.finetune.training.setup import History

FEW_PATIENTS = 20
FLAT = 0.95  # of the loss of the first tenth: one that ends above has hardly fallen
FLAT_STEPS = 100  # below so many steps nobody expects it to


def caveats(config: FinetuneConfig, sides: Split, trials: Sequence[TrialResult], undefined: str | None) -> list[str]:
    """All that hold of these trials. undefined: the headline metric, where it has no value somewhere in the table."""
    return [
        *_of_the_pretraining(config, sides),
        *_of_the_teacher(sides),
        *_of_self_training(config, trials),
        *_of_the_trainings(config, trials),
        *_of_the_tests(config, sides, trials, undefined),
    ]


def _of_the_pretraining(config: FinetuneConfig, sides: Split) -> list[str]:
    notes = []
    if sides.overlap:
        notes.append(
            f"TRANSDUCTIVE: {sides.overlap} test patients were pre-trained on, unlabelled "
            "(split.allow_pretraining_overlap). These numbers do not hold for new patients."
        )
    if not sides.comparable:
        notes.append(
            "the checkpoint's patients were hashed with another site key: whether test patients were pre-trained on "
            "could not be checked. If the pre-training saw this data, set data.key_file to the key of its shards."
        )
    elif config.checkpoint and sides.pretrained_on and not sides.overlap + sides.pool_overlap:
        notes.append(
            f"none of these patients is among the {sides.pretrained_on} of the pre-training: right if it saw other "
            "data; if it saw this data, name the folder (or data.patient_regex) as its shards were built with."
        )
    return notes


def _of_the_teacher(sides: Split) -> list[str]:
    seen = sides.teacher
    if seen is None:
        return []
    if seen.test:
        return [
            f"the teacher was trained on {seen.test} test patients (split.allow_pretraining_overlap). The numbers of "
            "the arms that it teaches do not hold for new patients."
        ]
    if not seen.known:
        return ["whom the teacher was trained on is not known: whether test patients are among them was not checked."]
    if not seen.pool:
        return [
            "none of these patients is among those that the teacher was trained on: right if it saw other data; if it "
            "saw this data, train it from the same folder."
        ]
    return []


def _of_self_training(config: FinetuneConfig, trials: Sequence[TrialResult]) -> list[str]:
    if config.self_training.rounds and not any(trial.unlabelled_cases for trial in trials):
        return ["self-training was asked for, but no scan is without a label."]
    notes = [
        f"{trial.arm}, {trial.shots} shots, seed {trial.seed}: self-training never began, the training was over "
        f"before: a network labels scans after self_training.min_steps ({config.self_training.min_steps}) steps at the "
        "earliest."
        for trial in trials
        if trial.unlabelled_cases and not _relabelled(trial)
    ]
    if scans := sorted({trial.unlabelled_cases for trial in trials if _relabelled(trial)}):
        notes.append(
            f"self-training: {' to '.join(map(str, sorted({scans[0], scans[-1]})))} scans of other patients than those "
            "tested on took part with labels of the model's own; nobody's labels of them were trained on."
        )
    return notes


def _relabelled(trial: TrialResult) -> bool:
    """Whether self-training began in it."""
    return any(history.relabelled for history in trial.histories)


def _of_the_trainings(config: FinetuneConfig, trials: Sequence[TrialResult]) -> list[str]:
    notes = []
    for trial in trials:
        flat = next((ends for history in trial.histories if (ends := _flat(history)) is not None), None)
        if flat is not None:
            notes.append(
                f"{trial.arm}, {trial.shots} shots, seed {trial.seed}: the training loss hardly fell ({flat[0]:.3f} to "
                f"{flat[1]:.3f}), so little was learnt; try a lower schedule.lr, more steps or less augmentation."
            )
    if config.budget and len({trial.steps for trial in trials}) > 1:
        notes.append("trials ended by time: their numbers of steps differ, see results.json.")
    schedule = config.schedule
    scaled = (schedule.encoder_lr_scale, schedule.layer_decay, schedule.pretrained_lr_scale) != (1, 1, None)
    if config.checkpoint and config.compare_scratch and (config.recipes != ["full"] or scaled):
        notes.append("the scratch arm trains its encoder from the first step at the full rate.")
    return notes


def _flat(history: History) -> tuple[float, float] | None:
    """The mean loss of a training's first and last tenth, where it hardly fell."""
    losses = [loss for _, loss in history.loss]
    if history.steps < FLAT_STEPS or not losses:
        return None
    tenth = max(1, len(losses) // 10)
    first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
    return (first, last) if last > FLAT * first else None


def _of_the_tests(
    config: FinetuneConfig, sides: Split, trials: Sequence[TrialResult], headline: str | None
) -> list[str]:
    notes = []
    tested = len({case.patient for case in sides.test})
    if tested < FEW_PATIENTS:
        notes.append(f"only {tested} test patients: the intervals are rough.")
    if len(config.seeds) == 1:
        notes.append("one seed: the intervals cover the choice of test patients, not that of training cases.")
    undefined = sum(record["score"] is None for record in trials[0].records)
    if undefined:
        notes.append(f"{undefined} test cases have neither truth nor prediction and no score; means leave them out.")
    if headline is not None:
        notes.append(f"'{headline}' is undefined on these test cases (one class or no finding among them).")
    return notes
