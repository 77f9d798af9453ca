"""One cell of a study (arm, shots, seed): trained, tested, written down whole or not at all."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from scanfoundry.configs.files import write_json, write_whole
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.config.postprocess import ClassRule
from scanfoundry.finetune.config.recipes import Arm, head_of
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.heads.whole_scan import WholeScanModel
from scanfoundry.finetune.metrics.intervals import Record
from scanfoundry.finetune.model_file import adapter_for, save_model
from scanfoundry.finetune.study.budget import Budget
from scanfoundry.finetune.study.ensemble import TrainingData, encoder_of, train_members
from scanfoundry.finetune.study.split import TrialCases
from scanfoundry.finetune.study.tested_cases import LookedAt
from scanfoundry.finetune.task import Adapter, Sample, Spec, TaskModel
from scanfoundry.finetune.tasks.probing import still_features
from scanfoundry.finetune.training.features import FeatureStore
from scanfoundry.finetune.training.loop import History, TrainProgress, TrainSetup
from scanfoundry.finetune.training.saving import Saved, Slot, Snapshot

RESULT, PICTURES = "cell.json", "pictures.npz"


@dataclass(frozen=True)
class TrialName:
    """Which cell."""

    arm: Arm
    shots: int | str
    seed: int

    @property
    def folder(self) -> str:
        """Its folder's name under cells/."""
        return f"{self.arm.name}-{self.shots}-shots-seed{self.seed}"


class TrialResult(BaseModel):
    """What a finished cell leaves: nothing in it names a patient or a file."""

    digest: str  # of everything that the result depends on
    arm: str
    shots: int | str
    seed: int
    train_cases: list[str]  # keyed hashes
    unlabelled_cases: int  # that took part by self-training
    histories: list[History]  # of each model, one for each fold
    validation: list[Record]  # of the held-back cases, by the models that did not see them
    temperature: float
    postprocess: list[ClassRule]
    records: list[Record]
    spent: float = 0.0  # seconds for everything, over all its starts

    @property
    def steps(self) -> int:
        """Of all its models."""
        return sum(history.steps for history in self.histories)

    @property
    def seconds(self) -> float:
        """That its models trained for."""
        return sum(history.seconds for history in self.histories)


def digest(config: FinetuneConfig, spec: Spec, arm: Arm, cases: TrialCases, checked: Checked, weights: str) -> str:
    """Changes with anything that changes a cell's result; run folder, device and the report's options do not."""
    others = {
        "run_dir", "shots", "seeds", "compare_scratch", "recipes", "bootstrap", "data", "checkpoint", "keep_weights",
        "plan", "checkpoint_minutes", "device",
    }  # fmt: skip
    parts = [
        config.model_dump(mode="json", exclude=others),
        spec.model_dump(mode="json", exclude={"profiles"}),  # they decide what is predicted on, and no result
        arm.name,
        sorted((case.key, checked.marks[case.key]) for case in cases.train),
        sorted((case.key, checked.marks[case.key]) for case in cases.test),
        sorted((case.key, checked.scan_marks[case.key]) for case in cases.unlabelled),
        weights,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def stored(folder: Path, expected: str, with_weights: bool) -> TrialResult | None:
    """The finished result in `folder`, if it is of the same data, plan and configuration."""
    if with_weights and not (folder / "model.json").exists():
        return None
    try:
        found = TrialResult.model_validate(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
    return found if found.digest == expected else None


@dataclass(frozen=True)
class TrialContext:
    """Where and how a cell runs."""

    folder: Path
    mark: str  # digest of all that the result depends on
    keep: bool  # the weights
    course: TrainSetup  # but for its time, where there is a budget
    budget: Budget | None
    store: FeatureStore  # of this checkpoint at this plan
    progress: TrainProgress
    tested: Callable[[int], None]
    saved: Saved  # what an earlier start of the cell left, and what this one leaves


def run_cell(
    config: FinetuneConfig,
    spec: Spec,
    name: TrialName,
    cases: TrialCases,
    pretrained: dict[str, torch.Tensor] | None,
    place: TrialContext,
) -> TrialResult:
    """Train, test on every case, and write pictures, weights (if they are kept) and, last, the result."""
    adapter = adapter_for(spec.model_copy(update={"head": head_of(name.arm.recipe)}))
    adapter = adapter_for(adapter.surveyed(cases.train))
    samples = [adapter.load(case) for case in cases.train]
    adapter = adapter_for(adapter.planned(samples))
    given = TrainingData(cases.train, samples, [adapter.read(case)[1] for case in cases.unlabelled])
    course, slot = place.course, Slot(place.saved, "")
    if place.budget is not None:
        course = replace(course, seconds=_dealt(place.budget, place.saved, adapter, cases.test, course.device))
    members = train_members(config, adapter, given, pretrained, course, place.store, place.progress, slot)
    del samples, given
    if members.held is not None:
        adapter = adapter_for(adapter.settled(members.held, config.validation))
    place.folder.mkdir(parents=True, exist_ok=True)
    (place.folder / RESULT).unlink(missing_ok=True)
    records, worst = _test(adapter, members.models, cases.test, config.worst_cases, place, slot.of("testing"))
    write_whole(place.folder / PICTURES, lambda part: _save_pictures(part, worst))
    if place.keep:
        steps = [history.steps for history in members.histories]
        trained = {"arm": name.arm.name, "shots": name.shots, "seed": name.seed, "steps": steps}
        save_model(place.folder, members.models, adapter.spec.model_copy(update={"trained": trained}))
    result = TrialResult(
        digest=place.mark,
        arm=name.arm.name,
        shots=name.shots,
        seed=name.seed,
        train_cases=[case.key for case in cases.train],
        unlabelled_cases=len(cases.unlabelled),
        histories=members.histories,
        validation=members.held.records if members.held else [],
        temperature=adapter.spec.temperature,
        postprocess=adapter.spec.postprocess,
        records=records,
        spent=place.saved.spent,
    )
    write_json(place.folder / RESULT, result.model_dump(mode="json"))
    place.saved.clear()
    return result


def _dealt(
    budget: Budget, saved: Saved, adapter: Adapter[Any, Any], cases: Sequence[Case], device: torch.device
) -> float:
    """Seconds to train for: those that an earlier start of the cell was given, else its share of the budget."""
    before = saved.read("budget")
    if before is not None:
        return float(before.facts["seconds"])
    saved.clear()  # what was trained under another time is of no use
    seconds = budget.training(_testing_time(adapter, cases, device))
    saved.write("budget", Snapshot(facts={"seconds": seconds}), "its start")
    return seconds


def _test(
    adapter: Adapter[Any, Any],
    members: Sequence[TaskModel],
    cases: Sequence[Case],
    worst_cases: int,
    place: TrialContext,
    slot: Slot,
) -> tuple[list[Record], dict[str, dict[str, Any]]]:
    """Records of all cases, and the pictures of those with the lowest score."""
    looked = LookedAt(slot)

    def look(number: int, case: Case) -> Record:
        sample: Sample[Any] = adapter.load(case)
        if adapter.spec.head != "plain":
            encoder = cast(WholeScanModel, members[0]).encoder
            sample.features = place.store.get(
                case.key, lambda: still_features(adapter, encoder, sample, place.course.device)
            )
        prediction = adapter.predict(members, sample, place.course.device)
        record = adapter.record(case, sample, prediction)
        score, scores = record["score"], looked.facts
        if score is not None and worst_cases and (len(scores) < worst_cases or score < max(scores.values())):
            looked.arrays[case.key] = adapter.explained(members, sample, prediction, place.course.device)
            scores[case.key] = score
            if len(scores) > worst_cases:
                best = max(scores, key=lambda key: scores[key])
                del scores[best], looked.arrays[best]
        place.tested(number + 1)
        return record

    records = looked.go_through(cases, look)
    order = sorted(looked.facts, key=lambda key: looked.facts[key])
    return records, {key: looked.arrays[key] for key in order}


def _testing_time(adapter: Adapter[Any, Any], cases: Sequence[Case], device: torch.device) -> float:
    """Seconds that testing one model on `cases` will take, by the first of them and random weights."""
    model = adapter.build(encoder_of(adapter.spec, 0, None)).to(device).eval()
    started = time.monotonic()
    sample = adapter.load(cases[0])
    adapter.record(cases[0], sample, adapter.predict([model], sample, device))
    return (time.monotonic() - started) * len(cases)


def _save_pictures(path: Path, pictures: dict[str, dict[str, Any]]) -> None:
    flat = {f"{key}.{part}": array for key, picture in pictures.items() for part, array in picture.items()}
    with path.open("wb") as stream:
        np.savez_compressed(stream, **flat)


def load_pictures(folder: Path) -> dict[str, dict[str, Any]]:
    """Pictures by case, worst first, as `run_cell` wrote them."""
    pictures: dict[str, dict[str, Any]] = {}
    with np.load(folder / PICTURES) as stored_arrays:
        for name in stored_arrays.files:
            key, _, part = name.partition(".")
            pictures.setdefault(key, {})[part] = stored_arrays[name]
    return pictures
