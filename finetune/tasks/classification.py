"""The classification task: whole scans fitted into the patch, cross-entropy or focal loss, AUROC."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.config.study import AugmentationConfig, ValidationConfig
from scanfoundry.finetune.heads.classification import ClassificationModel
from scanfoundry.finetune.heads.probes import AttentiveProbe, LinearProbe, NeighbourProbe
from scanfoundry.finetune.inference.calibration import temperature_of, tempered
from scanfoundry.finetune.losses import class_loss, class_weights
from scanfoundry.finetune.metrics import classification as scores
from scanfoundry.finetune.metrics.intervals import Statistic
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.task import Picture, Sample, Spec, TaskModel, Validation, identity
from scanfoundry.finetune.tasks.whole_scan import WholeScan

Probabilities = npt.NDArray[np.float64]


class Classification(WholeScan[int, Probabilities]):
    """One class of several for each scan. Of two classes the second is the positive one."""

    headline = "auroc"
    overview = ("auroc", "average precision", "balanced accuracy", "accuracy", "brier", "ece")

    def load(self, case: Case) -> Sample[int]:
        """The scan and the index of its class."""
        _, sample = self.read(case)
        assert isinstance(case.target, int)
        sample.target = sample.truth = case.target
        return sample

    def planned(self, samples: Sequence[Sample[int]]) -> Spec:
        """Weights of the classes, as `loss.class_weights` says."""
        counts = np.bincount([int(s.target or 0) for s in samples], minlength=len(self.spec.classes)).tolist()
        weights = class_weights(counts, self.spec.loss.class_weights)
        return self.spec.model_copy(update={"class_weights": weights})

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

    def batch(
        self, samples: Sequence[Sample[int]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, *patch) and class indices (B,). `fore` has no meaning here: the whole scan is seen."""
        return self.augmented(samples, rng, config), torch.tensor([sample.target for sample in samples])

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """The configured term."""
        weights = self.spec.class_weights
        weight = None if weights is None else torch.tensor(weights, device=images.device)
        return class_loss(model(images), targets, self.spec.loss, weight)

    def predict(self, members: Sequence[TaskModel], sample: Sample[int], device: torch.device) -> Probabilities:
        """Probabilities (K,): the mean over members and mirrorings, at the spec's temperature."""
        mean = self.passes(members, sample, device).softmax(1).mean(0).numpy()
        return tempered(mean, self.spec.temperature)

    def settled(self, held: Validation, config: ValidationConfig) -> Spec:
        """The temperature of the lowest log-loss on the held-back cases."""
        if not config.calibrate:
            return self.spec
        return self.spec.model_copy(update={"temperature": temperature_of(held.records)})

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

    def picture(self, sample: Sample[int], prediction: Probabilities) -> Picture:
        """The middle slice along the shortest axis."""
        return {
            "image": self.middle_slice(sample),
            "truth": np.array(sample.truth),
            "probabilities": prediction,
        }
