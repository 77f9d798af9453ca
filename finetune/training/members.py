"""The models of one cell: one, or one for each fold of the training cases; and what the held-back cases decide."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from scanforge.backbones.protocol import Encoder
from scanforge.backbones.registry import build
from scanforge.finetune.config import FinetuneConfig
from scanforge.finetune.data.cases import Case
from scanforge.finetune.split import folds, validation
from scanforge.finetune.tasks.adapter import Adapter, Sample, Spec, TaskModel, Validation
from scanforge.finetune.training.features import FeatureStore
from scanforge.finetune.training.loop import Course, History, Progress, train
from scanforge.finetune.training.lora import inject
from scanforge.finetune.training.probing import fit_probe
from scanforge.finetune.training.recipes import PROBES


@dataclass
class Members:
    """Trained models that predict together, and how they came about."""

    models: list[TaskModel]
    histories: list[History]
    held: Validation | None


def train_members(
    config: FinetuneConfig,
    adapter: Adapter[Any, Any],
    cases: Sequence[Case],
    samples: Sequence[Sample[Any]],
    pretrained: dict[str, torch.Tensor] | None,
    course: Course,
    store: FeatureStore,
    progress: Progress,
) -> Members:
    """Train one model on each of the parts of `cases` (and their `samples`) that `config.validation` asks for."""
    by_key = {case.key: sample for case, sample in zip(cases, samples, strict=True)}
    models: list[TaskModel] = []
    histories: list[History] = []
    held = Validation([], [])
    parts = _parts(config, cases, course.seed)
    for fit, back in parts:
        each = replace(course, seconds=course.seconds / len(parts) if course.seconds is not None else None)
        chosen, checked = ([(case, by_key[case.key]) for case in group] for group in (fit, back))
        model, history = _train_one(config, adapter, chosen, checked, pretrained, each, store, progress)
        models.append(model.eval())
        histories.append(history)
        for case, sample in checked:
            prediction = adapter.predict([model], sample, course.device)
            held.records.append(adapter.record(case, sample, prediction))
            held.maps += adapter.held(sample, prediction)
    return Members(models, histories, held if held.records else None)


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
    fit: Sequence[tuple[Case, Sample[Any]]],
    checked: Sequence[tuple[Case, Sample[Any]]],
    pretrained: dict[str, torch.Tensor] | None,
    course: Course,
    store: FeatureStore,
    progress: Progress,
) -> tuple[TaskModel, History]:
    encoder = encoder_of(adapter.spec, course.seed, pretrained)
    cases, samples = [case for case, _ in fit], [sample for _, sample in fit]
    if course.arm.recipe in PROBES:
        return fit_probe(adapter, encoder, samples, cases, course, config.probe, store)
    lora = inject(encoder, config.lora) if course.arm.recipe == "lora" else None
    model = adapter.build(encoder)

    def check(model: TaskModel) -> float:
        """Mean score of the held-back cases."""
        records = [adapter.record(c, s, adapter.predict([model], s, course.device)) for c, s in checked]
        scores = [record["score"] for record in records if record["score"] is not None]
        return float(np.mean(scores)) if scores else float("nan")

    history = train(adapter, model, samples, course, progress, check if checked else None)
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
