"""The classification task: whole scans fitted into the patch, cross-entropy or focal loss, AUROC."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.cases.mixing import mixed
from scanfoundry.finetune.config.study import AugmentationConfig, ValidationConfig
from scanfoundry.finetune.heads.classification import ClassificationModel
from scanfoundry.finetune.heads.probes import AttentiveProbe, LinearProbe, NeighbourProbe
from scanfoundry.finetune.heads.whole_scan import WholeScanModel
from scanfoundry.finetune.inference.calibration import temperature_of, tempered
from scanfoundry.finetune.inference.saliency import picture_with_saliency
from scanfoundry.finetune.losses import class_loss, class_weights
from scanfoundry.finetune.metrics import classification as scores
from scanfoundry.finetune.metrics.classification import Probabilities
from scanfoundry.finetune.metrics.intervals import Statistic
from scanfoundry.finetune.metrics.reliability import counted
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.sample import Sample, Validation
from scanfoundry.finetune.task import TaskModel, identity
from scanfoundry.finetune.task_parts import BundleOutput, ExportTexts, OutputFiles, Picture, ReportTexts, TableRow
from scanfoundry.finetune.tasks.whole_scan import WholeScan


class Classification(WholeScan[int, Probabilities]):
    """One class of several for each scan. Of two classes the second is the positive one."""

    headline = "auroc"
    overview = ("auroc", "average precision", "balanced accuracy", "accuracy", "brier", "ece")
    report = ReportTexts(
        score="probability of the true class",
        notes="ECE and Brier: lower is better.",
        limits="Scans are scaled to fit the patch; findings below its resolution are not seen. "
        "How far probabilities can be taken at their word: see the ECE.",
        truth="true class",
        prediction="other classes",
        light=True,
    )
    export = ExportTexts(
        prediction="probabilities",
        meaning="logits of each class; their softmax are the probabilities at temperature 1",
        steps="Average the probabilities over `mirrors` (axes flipped together), take them to the power of "
        "1 / `temperature`, and divide by their sum.",
        bundle=BundleOutput("probabilities", "classes", "predictions.csv with the probability of each class"),
    )

    def load(self, case: Case) -> Sample[int]:
        """The scan and the index of its class."""
        _, sample = self.read(case)
        assert isinstance(case.target, int)
        sample.target = sample.truth = case.target
        return sample

    def planned(self, samples: Sequence[Sample[int]]) -> Self:
        """Weights of the classes, as `loss.class_weights` says."""
        counts = np.bincount([int(s.target or 0) for s in samples], minlength=len(self.spec.classes)).tolist()
        weights = class_weights(counts, self.spec.loss.class_weights)
        return self.with_spec(class_weights=weights)

    def build(self, encoder: Encoder) -> TaskModel:
        """A head on the deepest features: a linear layer, or a probe."""
        n_classes, probe = len(self.spec.classes), self.spec.probe
        if self.spec.head == "linear_probe":
            return LinearProbe(encoder, n_classes)
        if self.spec.head == "attentive_probe":
            return AttentiveProbe(encoder, n_classes, probe.heads)
        if self.spec.head == "knn":
            return NeighbourProbe(encoder, n_classes, probe.neighbours, probe.temperature)
        return ClassificationModel(encoder, n_classes)

    def head_rows(self) -> list[str]:
        """The classes."""
        return list(self.spec.classes)

    def batch(
        self, samples: Sequence[Sample[int]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, *patch) and class indices (B,), or where scans are mixed shares of classes (B, K).

        `fore` has no meaning here: the whole scan is seen.
        """
        images, labels = self.augmented(samples, rng, config), torch.tensor([sample.target for sample in samples])
        return mixed(images, labels, len(self.spec.classes), rng, config) if config.mixes else (images, labels)

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """The configured term."""
        weights = self.spec.class_weights
        weight = None if weights is None else torch.tensor(weights, device=images.device)
        return class_loss(model(images), targets, self.spec.loss, weight)

    def predict(self, members: Sequence[TaskModel], sample: Sample[int], device: torch.device) -> Probabilities:
        """Probabilities (K,): the mean over members and mirrorings, at the spec's temperature."""
        mean = self.passes(members, sample, device).softmax(1).mean(0).numpy()
        return tempered(mean, self.spec.temperature)

    def settled(self, held: Validation, config: ValidationConfig) -> Self:
        """The temperature of the lowest log-loss on the held-back cases."""
        if not config.calibrate:
            return self
        return self.with_spec(temperature=temperature_of(held.records))

    def record(self, case: Case, sample: Sample[int], prediction: Probabilities) -> Record:
        """Class and probabilities; the score is the probability of the true class."""
        assert sample.truth is not None
        score = float(prediction[sample.truth])
        return identity(case) | {"score": score, "label": sample.truth, "probabilities": prediction.tolist()}

    def metrics(self) -> dict[str, Statistic]:
        """Of the pooled cases; sensitivity and specificity of two classes, the AUROC of each of several."""
        functions: dict[str, scores.Score] = {
            "auroc": scores.auroc,
            "average precision": scores.average_precision,
            "balanced accuracy": scores.balanced_accuracy,
            "accuracy": scores.accuracy,
            "brier": scores.brier,
            "ece": scores.expected_calibration_error,
        }
        if len(self.spec.classes) == 2:
            functions["sensitivity"] = partial(scores.recall, label=1)
            functions["specificity"] = partial(scores.recall, label=0)
        else:
            functions |= {
                f"auroc {n}": partial(scores.auroc_of_class, label=k) for k, n in enumerate(self.spec.classes)
            }
        return {name: scores.of_records(function) for name, function in functions.items()}

    def columns(self) -> list[str]:
        """The class, and the probability of each."""
        return ["prediction", *self.spec.classes]

    def write(
        self, members: Sequence[TaskModel], sample: Sample[int], device: torch.device, files: OutputFiles
    ) -> TableRow:
        """No file: the most probable class, and the probability of each."""
        found = self.predict(members, sample, device)
        named = dict(zip(self.spec.classes, (float(p) for p in found), strict=True))
        return {"prediction": max(named, key=lambda name: named[name])} | named

    @classmethod
    def charts(
        cls, shown: list[Record], by_arm: Mapping[str, list[Record]], classes: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Confusion matrix and reliability."""
        from scanfoundry.finetune.drawing import charts  # prediction needs no matplotlib

        probabilities, labels = (np.array([record[name] for record in shown]) for name in ("probabilities", "label"))
        bins = np.array(counted(probabilities, labels))
        return [
            ("Cases by true and predicted class.", charts.confusion(shown, classes)),
            ("Reliability; the numbers count cases.", charts.reliability(bins, False)),
        ]

    def explained(
        self, members: Sequence[TaskModel], sample: Sample[int], prediction: Probabilities, device: torch.device
    ) -> Picture:
        """With what spoke for the class; votes of neighbours have no gradient to tell."""
        if self.spec.head == "knn":
            return self.picture(sample, prediction)
        return picture_with_saliency(self, cast(Sequence[WholeScanModel], members), sample, prediction, device)

    @staticmethod
    def draw(axes: Any, picture: Picture, n_classes: int) -> None:
        """Where the model looked."""
        from scanfoundry.finetune.drawing import overlays

        overlays.saliency(axes, picture, n_classes)

    @staticmethod
    def bars(picture: Picture, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The probabilities."""
        truth = int(picture["truth"])
        rows = zip(classes, (float(p) for p in picture["probabilities"]), strict=True)
        return [{"name": name, "value": value, "true": k == truth} for k, (name, value) in enumerate(rows)]

    def picture(self, sample: Sample[int], prediction: Probabilities) -> Picture:
        """The middle slice along the shortest axis."""
        return {
            "image": self.middle_slice(sample),
            "truth": np.array(sample.truth),
            "probabilities": prediction,
        }
