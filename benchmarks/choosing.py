"""Studies that choose on validation patients and are tested on others afterwards: sides, trials, their tests."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from scanfoundry.datasets.identity import fraction
from scanfoundry.finetune.cases.cases import Case, CaseList
from scanfoundry.finetune.metrics.intervals import Interval
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.tasks.probing import still_features

TEST, VALIDATION = 0.25, 0.4  # patients below the first are tested on, those between choose
SEEDS = (0, 1, 2)  # labelled subsets; the first chooses
TESTED = "tested.json"
CHOOSING = 200  # validation patients at most: a rate is chosen as well on these as on a thousand


def is_tested(case: Case) -> bool:
    """Whether a case is of a patient that no choice may see: with `data.holdout` of TEST no pool holds it either."""
    return fraction(case.patient) < TEST


def choosing_split(found: CaseList) -> str:
    """The split file of studies that choose: they test on the validation patients, and know no others."""
    between = sorted({fraction(case.patient) for case in found.cases if TEST <= fraction(case.patient) < VALIDATION})
    choosing = set(between[:CHOOSING])
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for case in found.cases:
        share = fraction(case.patient)
        if share >= VALIDATION or share in choosing:
            sides["train" if share >= VALIDATION else "test"].append(found.names[case.key])
    return json.dumps(sides)


def cells(folder: Path, seeds: Sequence[int]) -> list[Path]:
    """The folders of a study's trials, by seed; the study has one arm and one number of labels."""
    found = [sorted((folder / "cells").glob(f"*-seed{seed}")) for seed in seeds]
    return [each[0] if each else folder / "missing" for each in found]


def trained(folder: Path, seeds: Sequence[int]) -> bool:
    """Whether these trials are done and have their models (`keep_weights: all`)."""
    return all((cell / name).exists() for cell in cells(folder, seeds) for name in ("cell.json", "model.safetensors"))


def records_of(cell: Path) -> list[Record]:
    """The records of the cases that the trial itself tested."""
    records: list[Record] = json.loads((cell / "cell.json").read_text())["records"]
    return records


def test_model(cell: Path, cases: Iterable[Case]) -> None:
    """Write the records of a trial's model, on those of the cases that are tested on, beside it."""
    adapter, models = load_model(cell)
    device, records = torch.device("cpu"), []
    for case in filter(is_tested, cases):
        sample = adapter.load(case)
        if adapter.spec.head != "plain":
            sample.features = still_features(adapter, models[0].encoder, sample, device)
        records.append(adapter.record(case, sample, adapter.predict(models, sample, device)))
    (cell / TESTED).write_text(json.dumps(records))


def spoken(found: Interval) -> str:
    """'value [low, high]'."""
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
