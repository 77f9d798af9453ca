"""A trial of a study, one arm at one number of shots and one seed: its name, its result, and what both depend on."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.config.postprocess import ClassRule
from scanfoundry.finetune.config.recipes import Arm
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.split import TrialCases
from scanfoundry.finetune.training.setup import History

TRIALS, RESULT = "cells", "cell.json"  # the folder of all trials in a run folder; the result in a trial's folder


@dataclass(frozen=True)
class TrialName:
    """Which trial of a study."""

    arm: Arm
    shots: int | float | str
    seed: int

    @property
    def folder(self) -> str:
        """The name of its folder under `TRIALS`."""
        return f"{self.arm.name}-{self.shots}-shots-seed{self.seed}"


class TrialResult(BaseModel):
    """What a finished trial leaves: nothing in it names a patient or a file."""

    digest: str  # of everything that the result depends on
    arm: str
    shots: int | float | str
    seed: int
    train_cases: list[str]  # keyed hashes
    unlabelled_cases: int  # that took part by self-training
    transferred: list[str] = []  # what became of the parts of the model that it started from
    histories: list[History]  # of each model, one for each fold
    validation: list[Record]  # of the held-back cases, by the models that did not see them
    temperature: float
    postprocess: list[ClassRule]
    records: list[Record]
    spent: float = 0.0  # seconds for everything, over all its starts

    @property
    def steps(self) -> int:
        """The number of steps of all its models together."""
        return sum(history.steps for history in self.histories)

    @property
    def seconds(self) -> float:
        """The time in which its models were trained."""
        return sum(history.seconds for history in self.histories)


def digest_of_trial(
    config: FinetuneConfig, spec: Spec, arm: Arm, cases: TrialCases, checked: Checked, weights: str
) -> str:
    """A digest that changes with anything that changes the result of a trial.

    The run folder, the device, the number of processes and the options of the report do not change it.

    Args:
        config: the configuration of the study.
        spec: the specification of all its models.
        arm: the arm of the trial.
        cases: the cases of the trial.
        checked: the checksums of their content and of their headers.
        weights: the checksum of the checkpoint, or an empty string.
    """
    others = {
        "run_dir", "shots", "seeds", "compare_scratch", "recipes", "bootstrap", "data", "checkpoint", "keep_weights",
        "plan", "checkpoint_minutes", "device", "sample_cache_gb", "processes",
    }  # fmt: skip
    parts = [
        config.model_dump(mode="json", exclude=others),
        spec.model_dump(mode="json", exclude={"profiles"}),  # they decide what is predicted on, and no result
        arm.name,
        sorted((case.key, checked.digests[case.key], checked.headers[case.key]) for case in cases.train),
        sorted((case.key, checked.digests[case.key], checked.headers[case.key]) for case in cases.test),
        sorted((case.key, checked.scan_digests[case.key], checked.headers[case.key]) for case in cases.unlabelled),
        weights,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def stored_result(folder: Path, expected: str, with_weights: bool) -> TrialResult | None:
    """The finished result in a trial's folder, or None.

    Args:
        folder: of the trial.
        expected: the digest that the result must have.
        with_weights: the weights must be there too.
    """
    if with_weights and not (folder / "model.json").exists():
        return None
    try:
        found = TrialResult.model_validate(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
    return found if found.digest == expected else None
