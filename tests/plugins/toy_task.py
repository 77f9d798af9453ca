"""A task in one file outside of the project: the grade of a scan (0, 1, 2 ...), an ordinal number.

Configuration, head, metrics, report and export; the network learns for each grade whether a scan reaches it.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scanfoundry.finetune.config.tasks.base import NO_LABEL_MAPS, NO_PROBABILITIES, WHOLE_SCANS
from scanfoundry.finetune.config.tasks.labels import ReadsValues
from scanfoundry.finetune.drawing.charts import agreement
from scanfoundry.finetune.heads.whole_scan import WholeScanModel
from scanfoundry.finetune.metrics.weighted import mean_of
from scanfoundry.finetune.task import identity
from scanfoundry.finetune.task_parts import ExportTexts, ReportTexts
from scanfoundry.finetune.tasks.whole_scan import WholeScan


class GradeTask(ReadsValues):
    """A grade for each scan, from a column of a list."""

    unread: ClassVar[Mapping[str, str]] = NO_LABEL_MAPS | NO_PROBABILITIES | WHOLE_SCANS

    name: Literal["grade"] = "grade"
    label_column: str = "grade"
    highest: int = Field(default=2, ge=1)


class GradeModel(WholeScanModel):
    """One score of the pooled features, and for each grade from 1 on the score from which it is reached."""

    def __init__(self, encoder, highest: int) -> None:
        super().__init__(encoder)
        self.score = nn.Linear(encoder.pooled_dim, 1)
        self.thresholds = nn.Parameter(torch.linspace(-1, 1, highest))

    def head(self, features: Tensor) -> Tensor:
        """(B, F, d, h, w) -> (B, highest) logits of reaching each grade."""
        return self.score(features.mean((2, 3, 4))) - self.thresholds


class Grade(WholeScan[float, float]):
    """A prediction is a grade with decimals: the sum of the probabilities of reaching each."""

    headline = "grades off"
    overview = ("grades off", "right")
    report = ReportTexts("minus the grades off", "Grades off: lower is better.", "A toy.", pictures="The middle slice.")
    export = ExportTexts(meaning="logits of reaching each grade", steps="Add up the sigmoids.")

    def load(self, case):
        _, sample = self.read(case)
        sample.target = sample.truth = case.target
        return sample

    def build(self, encoder):
        return GradeModel(encoder, self.spec.task.highest)

    def batch(self, samples, rng, config, fore):
        return self.augmented(samples, rng, config), torch.tensor([sample.target for sample in samples])

    def loss(self, model, images, targets):
        logits = model(images)
        reached = targets[:, None] > torch.arange(logits.shape[1], device=targets.device)
        return F.binary_cross_entropy_with_logits(logits.float(), reached.float())

    def predict(self, members, sample, device):
        return float(self.passes(members, sample, device).sigmoid().sum(1).mean())

    def record(self, case, sample, prediction):
        off = abs(round(prediction) - sample.truth)
        return identity(case) | {"score": -off, "truth": sample.truth, "prediction": prediction}

    def metrics(self):
        return {
            "grades off": mean_of(lambda record: -record["score"]),
            "right": mean_of(lambda record: float(record["score"] == 0)),
        }

    def picture(self, sample, prediction):
        return {"image": self.middle_slice(sample), "truth": np.array(sample.truth)}

    def columns(self):
        return ["grade"]

    def write(self, members, sample, device, files):
        return {"grade": self.predict(members, sample, device)}

    @classmethod
    def charts(cls, shown, by_arm, classes):
        return [("Toy chart of grades.", agreement(shown))]

    def output_names(self):
        return [f"at least {k + 1}" for k in range(self.spec.task.highest)]


PLUGINS = {"task": [(GradeTask, Grade)]}
