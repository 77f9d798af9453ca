"""The models of one trial: one, or one for each fold of the training cases; and what the held-back cases decide."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import build
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.config.recipes import PROBES
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.sample import Sample, Validation
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.split import folds, validation
from scanfoundry.finetune.study.teacher import load_teacher
from scanfoundry.finetune.study.tested_cases import held_back
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.tasks.probing import fit_probe
from scanfoundry.finetune.training.features import FeatureStore
from scanfoundry.finetune.training.loop import train
from scanfoundry.finetune.training.lora import inject
from scanfoundry.finetune.training.saving import Snapshot
from scanfoundry.finetune.training.setup import History, TrainProgress, TrainSetup
from scanfoundry.finetune.training.slot import NOWHERE, Slot
from scanfoundry.finetune.training.transfer import StartWeights, transfer


@dataclass
class Ensemble:
    """Trained models that predict together, and how they came about."""

    models: list[TaskModel]
    histories: list[History]
    held: Validation | None
    transferred: list[str] = field(default_factory=list)  # what became of the parts of the model they started from


@dataclass(frozen=True)
class TrainingData:
    """What is trained on: cases with their samples, and samples without a target."""

    cases: Sequence[Case]
    samples: Sequence[Sample[Any]]
    unlabelled: Sequence[Sample[Any]] = ()

    def part(self, cases: Sequence[Case]) -> "TrainingData":
        """Some of the cases with their samples, and all samples without a target."""
        by_key = {case.key: sample for case, sample in zip(self.cases, self.samples, strict=True)}
        return TrainingData(cases, [by_key[case.key] for case in cases], self.unlabelled)


def train_ensemble(
    config: FinetuneConfig,
    adapter: Adapter[Any, Any],
    data: TrainingData,
    start: StartWeights | None,
    setup: TrainSetup,
    store: FeatureStore,
    progress: TrainProgress,
    slot: Slot = NOWHERE,
) -> Ensemble:
    """Train one model on each of the parts of the cases that `config.validation` asks for.

    Args:
        config: the configuration of the study.
        adapter: the task, planned.
        data: what is trained on.
        start: the weights that it starts from, None from scratch.
        setup: of all trainings together: each gets its share of the time.
        store: features of a frozen encoder.
        progress: is called after each step.
        slot: of the trial, where each trained model and what it predicts of held-back cases is kept until the trial
            is finished.
    """
    models: list[TaskModel] = []
    histories: list[History] = []
    held = Validation([], [])
    transferred: list[str] = []
    parts = _parts(config, data.cases, setup.seed)
    each = replace(setup, seconds=setup.seconds / len(parts) if setup.seconds is not None else None)
    for number, (fit, back) in enumerate(parts):
        title, trained = f"model {number + 1} of {len(parts)} (trained)", slot.of(f"member-{number}")
        checked = data.part(back)
        found = trained.read()
        if found is None:
            running = slot.of(f"training-{number}")
            model, history, transferred = _train_one(
                config, adapter, data.part(fit), checked, start, each, store, progress, running
            )
            trained.write(
                Snapshot(
                    dict(model.state_dict()), {"history": history.model_dump(mode="json"), "transferred": transferred}
                ),
                title,
            )
            running.forget()
        else:
            model, history, transferred = _restored(adapter, found, setup)
            trained.goes_on(title)
        trained.leave_if_asked(title)
        models.append(model.eval())
        histories.append(history)
        if back:
            predicted = slot.of(f"held-{number}")
            seen = held_back(adapter, model, checked.cases, checked.samples, setup.device, predicted)
            held.records += seen.records
            held.maps += seen.maps
    return Ensemble(models, histories, held if held.records else None, transferred)


def _restored(adapter: Adapter[Any, Any], found: Snapshot, setup: TrainSetup) -> tuple[TaskModel, History, list[str]]:
    """A model that an earlier start of the trial trained."""
    model = adapter.build(encoder_of(adapter.spec, setup.seed, None))
    model.load_state_dict(found.tensors)
    facts = found.facts
    return model.to(setup.device), History.model_validate(facts["history"]), facts["transferred"]


def _parts(config: FinetuneConfig, cases: Sequence[Case], seed: int) -> list[tuple[list[Case], list[Case]]]:
    """The cases to train on, and those held back, of each model."""
    chosen = config.validation
    if chosen.folds > 1:
        return folds(cases, chosen.folds, seed)
    if chosen.fraction:
        return [validation(cases, chosen.fraction, seed)]
    return [(list(cases), [])]


def _train_one(
    config: FinetuneConfig,
    adapter: Adapter[Any, Any],
    fit: TrainingData,
    checked: TrainingData,
    start: StartWeights | None,
    setup: TrainSetup,
    store: FeatureStore,
    progress: TrainProgress,
    slot: Slot,
) -> tuple[TaskModel, History, list[str]]:
    encoder = encoder_of(adapter.spec, setup.seed, start.parts["encoder"] if start else None)
    if setup.arm.recipe in PROBES:
        return *fit_probe(adapter, encoder, fit.samples, fit.cases, setup, config.probe, store, slot), []
    lora = inject(encoder, config.lora) if setup.arm.recipe == "lora" else None
    model = adapter.build(encoder)
    transferred: list[str] = []
    if start:
        taken = transfer(adapter, model, start)
        transferred, setup = taken.lines(), replace(setup, loaded=taken.names)

    def mean_score(model: TaskModel) -> float:
        """The mean score of the held-back cases."""
        held = zip(checked.cases, checked.samples, strict=True)
        records = [adapter.record(c, s, adapter.predict([model], s, setup.device)) for c, s in held]
        scores = [record["score"] for record in records if record["score"] is not None]
        return float(np.mean(scores)) if scores else float("nan")

    check = mean_score if checked.cases else None
    teacher = load_teacher(config.distil, adapter.spec) if setup.arm.distilled else None
    history = train(adapter, model, fit.samples, setup, progress, check, fit.unlabelled, slot, encoder, teacher)
    if lora is not None:
        lora.merge()
    return model, history, transferred


def encoder_of(spec: Spec, seed: int, pretrained: dict[str, torch.Tensor] | None) -> Encoder:
    """An encoder with fresh weights of the seed, then those of the checkpoint.

    The generator ends in the same state either way, so that all arms start from the same head.
    """
    torch.manual_seed(seed)
    encoder = build(spec.backbone)
    if pretrained is not None:
        encoder.load_state_dict(pretrained)
    return encoder
