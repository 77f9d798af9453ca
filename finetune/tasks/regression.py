"""The regression task: one number of each scan, whole scans fitted into the patch, smooth L1, mean absolute error."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.config.study import AugmentationConfig
from scanfoundry.finetune.config.tasks.labels import ReadsValues
from scanfoundry.finetune.heads.regression import RegressionModel
from scanfoundry.finetune.losses import smooth_l1
from scanfoundry.finetune.metrics import regression as scores
from scanfoundry.finetune.metrics.intervals import Statistic
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.spec import Standard
from scanfoundry.finetune.task import TaskModel, identity
from scanfoundry.finetune.task_parts import BundleOutput, ExportTexts, OutputFiles, Picture, ReportTexts, TableRow
from scanfoundry.finetune.tasks.whole_scan import WholeScan


class Regression(WholeScan[float, float]):
    """The network learns the target in standard deviations from the mean of the training cases; every number that
    leaves is in the target's own unit."""

    headline = "mae"
    overview = ("mae", "rmse", "r2", "pearson", "spearman")
    report = ReportTexts(
        score="minus the absolute error",
        notes="MAE and RMSE are in the unit of the value; lower is better.",
        limits="Scans are scaled to fit the patch; what is below its resolution is not seen. "
        "Values outside the range of the training cases are extrapolated.",
    )
    export = ExportTexts(
        prediction="value",
        meaning="the value in the unit of the training cases",
        steps="Average the value over `mirrors` (axes flipped together).",
        bundle=BundleOutput("other", "other", "predictions.csv with the value"),
    )

    @property
    def standard(self) -> Standard:
        """The scale of the training cases; `planned` sets it."""
        assert self.spec.standard is not None
        return self.spec.standard

    def load(self, case: Case) -> Sample[float]:
        """The scan and its value."""
        _, sample = self.read(case)
        assert isinstance(case.target, float)
        sample.target = sample.truth = case.target
        return sample

    def head_rows(self) -> list[str]:
        """None: what number another model predicts is not known to be this one."""
        return []

    def planned(self, samples: Sequence[Sample[float]]) -> Self:
        """Mean and standard deviation of the targets; UserError where they are all the same."""
        values = np.array([sample.target for sample in samples], float)
        mean, std = float(values.mean()), float(values.std())
        if not std > 1e-9 * max(abs(mean), 1e-300):
            raise UserError(f"all {len(values)} training cases have the value {mean:g}: raise 'shots'")
        return self.with_spec(standard=Standard(mean=mean, std=std))

    def build(self, encoder: Encoder) -> TaskModel:
        """Pooled features and a linear layer of one output."""
        return RegressionModel(encoder)

    def batch(
        self, samples: Sequence[Sample[float]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, *patch) and standardised targets (B,). `fore` has no meaning here."""
        values = np.array([sample.target for sample in samples], float)
        targets = torch.from_numpy((values - self.standard.mean) / self.standard.std).float()
        return self.augmented(samples, rng, config), targets

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """Smooth L1 of the standardised values."""
        return smooth_l1(model(images), targets, self.spec.loss)

    def predict(self, members: Sequence[TaskModel], sample: Sample[float], device: torch.device) -> float:
        """The value in the target's unit: the mean over members and mirrorings."""
        return float(self.passes(members, sample, device).mean()) * self.standard.std + self.standard.mean

    def record(self, case: Case, sample: Sample[float], prediction: float) -> Record:
        """Truth and prediction; the score is minus the absolute error."""
        assert sample.truth is not None
        score = -abs(prediction - sample.truth)
        return identity(case) | {"score": score, "truth": sample.truth, "prediction": prediction}

    def metrics(self) -> dict[str, Statistic]:
        """Of the pooled cases."""
        functions: dict[str, scores.Score] = {
            "mae": scores.mae,
            "rmse": scores.rmse,
            "r2": scores.r2,
            "pearson": scores.pearson,
            "spearman": scores.spearman,
        }
        return {name: scores.of_records(function) for name, function in functions.items()}

    def columns(self) -> list[str]:
        """The value, under the name of the column that it was learnt from."""
        assert isinstance(self.spec.task, ReadsValues)
        return [self.spec.task.label_column]

    def write(
        self, members: Sequence[TaskModel], sample: Sample[float], device: torch.device, files: OutputFiles
    ) -> TableRow:
        """No file: the value."""
        return {self.columns()[0]: self.predict(members, sample, device)}

    @classmethod
    def charts(
        cls, shown: list[Record], by_arm: Mapping[str, list[Record]], classes: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Predicted over true value."""
        from scanfoundry.finetune.drawing import charts  # prediction needs no matplotlib

        return [("Predicted and true value of every test case.", charts.agreement(shown))]

    def output_names(self) -> list[str]:
        """The value's name."""
        return self.columns()

    def array_names(self, count: int) -> list[str]:
        """One value."""
        return ["value"]

    def picture(self, sample: Sample[float], prediction: float) -> Picture:
        """The middle slice along the shortest axis."""
        return {"image": self.middle_slice(sample), "truth": np.array(sample.truth), "prediction": np.array(prediction)}
