"""Testing the models of a trial on every test case, with pictures of the worst."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.heads.whole_scan import WholeScanModel
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.study.context import TrialContext
from scanfoundry.finetune.study.ensemble import encoder_of
from scanfoundry.finetune.study.sample_cache import SampleReader
from scanfoundry.finetune.study.tested_cases import TestedCases
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.tasks.probing import still_features
from scanfoundry.finetune.training.slot import Slot

PICTURES = "pictures.npz"

Pictures = dict[str, dict[str, Any]]  # by case, worst first: arrays by name


def evaluate_models(
    adapter: Adapter[Any, Any],
    reader: SampleReader,
    models: Sequence[TaskModel],
    cases: Sequence[Case],
    worst_cases: int,
    context: TrialContext,
) -> tuple[list[Record], Pictures]:
    """The records of all cases, and the pictures of those with the lowest score.

    Args:
        adapter: the task, as it predicts.
        reader: reads the cases.
        models: predict together.
        cases: to test on.
        worst_cases: how many are pictured.
        context: of the trial; what is tested there already is not tested again.
    """
    tested, device = TestedCases(Slot(context.saved, "testing")), context.setup.device

    def test(number: int, case: Case) -> Record:
        sample = reader.labelled(case)
        if adapter.spec.head != "plain":
            encoder = cast(WholeScanModel, models[0]).encoder
            sample.features = context.store.get(case.key, lambda: still_features(adapter, encoder, sample, device))
        prediction = adapter.predict(models, sample, device)
        record = adapter.record(case, sample, prediction)
        score, scores = record["score"], tested.facts
        if score is not None and worst_cases and (len(scores) < worst_cases or score < max(scores.values())):
            tested.arrays[case.key] = adapter.explained(models, sample, prediction, device)
            scores[case.key] = score
            if len(scores) > worst_cases:
                best = max(scores, key=lambda key: scores[key])
                del scores[best], tested.arrays[best]
        context.tested(number + 1)
        return record

    records = tested.go_through(cases, test)
    order = sorted(tested.facts, key=lambda key: tested.facts[key])
    return records, {key: tested.arrays[key] for key in order}


def testing_time(
    adapter: Adapter[Any, Any], reader: SampleReader, cases: Sequence[Case], device: torch.device
) -> float:
    """Seconds that testing one model on `cases` will take, by the first of them and random weights."""
    model = adapter.build(encoder_of(adapter.spec, 0, None)).to(device).eval()
    started = time.monotonic()
    sample = reader.labelled(cases[0])
    adapter.record(cases[0], sample, adapter.predict([model], sample, device))
    return (time.monotonic() - started) * len(cases)


def save_pictures(path: Path, pictures: Pictures) -> None:
    """Write pictures into one file."""
    flat = {f"{key}.{part}": array for key, picture in pictures.items() for part, array in picture.items()}
    with path.open("wb") as stream:
        np.savez_compressed(stream, **flat)


def load_pictures(folder: Path) -> Pictures:
    """The pictures in the folder of a finished trial."""
    pictures: Pictures = {}
    with np.load(folder / PICTURES) as arrays:
        for name in arrays.files:
            key, _, part = name.partition(".")
            pictures.setdefault(key, {})[part] = arrays[name]
    return pictures
