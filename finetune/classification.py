"""The classification task: whole scans fitted into the patch, cross-entropy, AUROC."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from scanforge.backbones.protocol import Encoder
from scanforge.datasets.readers import Scan
from scanforge.finetune.adapter import Adapter, Picture, Sample, TaskModel, centred, fitted_shape, identity, upright
from scanforge.finetune.cases import Case
from scanforge.finetune.config import AugmentationConfig
from scanforge.finetune.heads.classification import ClassificationModel
from scanforge.finetune.metrics import classification as scores
from scanforge.finetune.metrics.intervals import Record
from scanforge.finetune.sampling import Window, extract, random_matrix, still_window, vary_intensity
from scanforge.finetune.volumes import Shape

Probabilities = npt.NDArray[np.float64]


class Classification(Adapter[int, Probabilities]):
    """One class of several for each scan."""

    headline = "auroc"

    def shape_of(self, scan: Scan) -> Shape:
        """Scaled to fit into the patch."""
        d, h, w = scan.voxels.shape[1:]
        return fitted_shape((d, h, w), scan.spacing, self.spec.plan)

    def load(self, case: Case) -> Sample[int]:
        """The scan and the index of its class."""
        _, sample = self.read(case)
        assert isinstance(case.target, int)
        sample.target = sample.truth = case.target
        return sample

    def build(self, encoder: Encoder) -> TaskModel:
        """Pooled features and a linear layer."""
        return ClassificationModel(encoder, len(self.spec.classes))

    def batch(
        self, samples: Sequence[Sample[int]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, *patch) and class indices (B,). `fore` has no meaning here: the whole scan is seen."""
        images = []
        for sample in samples:
            d, h, w = sample.image.shape[1:]
            still = still_window((d, h, w), self.spec.plan.patch)
            matrix = random_matrix(rng, config, self.spec.plan.spacing, self.spec.plan.is_2d, turn=True)
            images.append(extract(sample.image, Window(still.centre, matrix, still.size), sample.fill))
        classes = torch.tensor([sample.target for sample in samples])
        return vary_intensity(torch.stack(images), rng, config), classes

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(model(images).float(), targets)

    @torch.inference_mode()
    def predict(self, members: Sequence[TaskModel], sample: Sample[int], device: torch.device) -> Probabilities:
        """Probabilities (K,), the mean over the members and the mirrorings."""
        image = centred(sample, self.spec.plan).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            flipped = [image.flip([axis + 2 for axis in axes]) for axes in self.mirrors()]
            passes = [model(one).float() for model in members for one in flipped]
        return torch.cat(passes).double().softmax(1).mean(0).cpu().numpy()

    def record(self, case: Case, sample: Sample[int], prediction: Probabilities) -> Record:
        """Class and probabilities; the score is the probability of the true class."""
        assert sample.truth is not None
        score = float(prediction[sample.truth])
        return identity(case) | {"score": score, "label": sample.truth, "probabilities": prediction.tolist()}

    def metrics(self) -> dict[str, Callable[[list[Record]], float]]:
        """Of the pooled cases; each function is held against scikit-learn or a plain loop in the tests."""
        functions = {
            "auroc": scores.auroc,
            "average precision": scores.average_precision,
            "balanced accuracy": scores.balanced_accuracy,
            "accuracy": scores.accuracy,
            "ece": scores.expected_calibration_error,
        }
        return {name: partial(_pooled, function=function) for name, function in functions.items()}

    def picture(self, sample: Sample[int], prediction: Probabilities) -> Picture:
        """The middle slice along the shortest axis."""
        image = sample.image[0].numpy()
        axis = int(np.argmin(image.shape))
        middle = upright(np.take(image, image.shape[axis] // 2, axis), sample.orientation, axis)
        return {"image": middle.astype(np.float16), "truth": np.array(sample.truth), "probabilities": prediction}


def _pooled(records: list[Record], function: Callable[[npt.NDArray, npt.NDArray], float]) -> float:
    labels = np.array([record["label"] for record in records])
    return function(labels, np.array([record["probabilities"] for record in records]))
