"""The models of one cell: one, or one for each fold of the training cases; and what the held-back cases decide."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import build
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.config.recipes import PROBES
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.study.split import folds, validation
from scanfoundry.finetune.study.tested_cases import held_back
from scanfoundry.finetune.task import Adapter, Sample, Spec, TaskModel, Validation
from scanfoundry.finetune.tasks.probing import fit_probe
from scanfoundry.finetune.training.features import FeatureStore
from scanfoundry.finetune.training.loop import History, TrainProgress, TrainSetup, train
from scanfoundry.finetune.training.lora import inject
from scanfoundry.finetune.training.saving import NOWHERE, Slot, Snapshot


@dataclass
class Members:
    """Trained models that predict together, and how they came about."""

    models: list[TaskModel]
    histories: list[History]
    held: Validation | None


@dataclass(frozen=True)
class TrainingData:
    """What is trained on: cases with their samples, and samples without a target."""

    cases: Sequence[Case]
    samples: Sequence[Sample[Any]]
    unlabelled: Sequence[Sample[Any]] = ()


def train_members(
    config: FinetuneConfig,
    adapter: Adapter[Any, Any],
    given: TrainingData,
    pretrained: dict[str, torch.Tensor] | None,
    course: TrainSetup,
    store: FeatureStore,
    progress: TrainProgress,
    slot: Slot = NOWHERE,
) -> Members:
    """Train one model on each of the parts of the cases that `config.validation` asks for.

    slot: of the cell, where each trained model and what it predicts of held-back cases is kept until the cell is done.
    """
    by_key = {case.key: sample for case, sample in zip(given.cases, given.samples, strict=True)}
    models: list[TaskModel] = []
    histories: list[History] = []
    held = Validation([], [])
    parts = _parts(config, given.cases, course.seed)
    for number, (fit, back) in enumerate(parts):
        each = replace(course, seconds=course.seconds / len(parts) if course.seconds is not None else None)
        chosen, checked = (
            TrainingData(part, [by_key[case.key] for case in part], given.unlabelled) for part in (fit, back)
        )
        name, kept = f"model {number + 1} of {len(parts)}", slot.of(f"member-{number}")
        found = kept.read()
        if found is None:
            running = slot.of(f"training-{number}")
            told = chosen, checked, pretrained, each, store, progress, running
            model, history = _train_one(config, adapter, *told)
            facts = {"history": history.model_dump(mode="json")}
            kept.write(Snapshot(dict(model.state_dict()), facts), f"{name} (trained)")
            running.forget()
        else:
            model, history = _trained(adapter, found, course)
            kept.goes_on(f"{name} (trained)")
        kept.leave_if_asked(f"{name} (trained)")
        models.append(model.eval())
        histories.append(history)
        if checked.cases:
            predicted = slot.of(f"held-{number}")
            seen = held_back(adapter, model, checked.cases, checked.samples, course.device, predicted)
            held.records += seen.records
            held.maps += seen.maps
    return Members(models, histories, held if held.records else None)


def _trained(adapter: Adapter[Any, Any], found: Snapshot, course: TrainSetup) -> tuple[TaskModel, History]:
    """A model that an earlier start of the cell trained."""
    model = adapter.build(encoder_of(adapter.spec, course.seed, None))
    model.load_state_dict(found.tensors)
    return model.to(course.device), History.model_validate(found.facts["history"])


def _parts(config: FinetuneConfig, cases: Sequence[Case], seed: int) -> list[tuple[list[Case], list[Case]]]:
    """(to train on, held back) of each model."""
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
    pretrained: dict[str, torch.Tensor] | None,
    course: TrainSetup,
    store: FeatureStore,
    progress: TrainProgress,
    slot: Slot,
) -> tuple[TaskModel, History]:
    encoder = encoder_of(adapter.spec, course.seed, pretrained)
    if course.arm.recipe in PROBES:
        return fit_probe(adapter, encoder, fit.samples, fit.cases, course, config.probe, store, slot)
    lora = inject(encoder, config.lora) if course.arm.recipe == "lora" else None
    model = adapter.build(encoder)

    def check(model: TaskModel) -> float:
        """Mean score of the held-back cases."""
        held = zip(checked.cases, checked.samples, strict=True)
        records = [adapter.record(c, s, adapter.predict([model], s, course.device)) for c, s in held]
        scores = [record["score"] for record in records if record["score"] is not None]
        return float(np.mean(scores)) if scores else float("nan")

    looked = check if checked.cases else None
    history = train(adapter, model, fit.samples, course, progress, looked, fit.unlabelled, slot)
    if lora is not None:
        lora.merge()
    return model, history


def encoder_of(spec: Spec, seed: int, pretrained: dict[str, torch.Tensor] | None) -> Encoder:
    """Fresh weights of the seed, then those of the checkpoint; the generator ends in the same state either way, so
    that all arms start from the same head."""
    torch.manual_seed(seed)
    encoder = build(spec.backbone)
    if pretrained is not None:
        encoder.load_state_dict(pretrained)
    return encoder
