"""The segmentation task: patches, Dice + CE, sliding windows, Dice."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanforge.backbones.protocol import Encoder
from scanforge.configs.errors import UserError
from scanforge.datasets.readers import Scan
from scanforge.finetune.adapter import Adapter, Picture, Sample, TaskModel, identity, upright
from scanforge.finetune.cases import Case
from scanforge.finetune.config import AugmentationConfig
from scanforge.finetune.heads.segmentation import SegmentationModel
from scanforge.finetune.inference import Tiling
from scanforge.finetune.losses import deep_supervision
from scanforge.finetune.metrics.dice import dice, mean_defined
from scanforge.finetune.metrics.intervals import Record
from scanforge.finetune.sampling import Window, extract, random_matrix, vary_intensity
from scanforge.finetune.segmented import Segmented, Wanted, segment_volume
from scanforge.finetune.volumes import Shape, read_labels, resize, resize_labels, target_shape

Labels = npt.NDArray[np.uint8]


class Segmentation(Adapter[Labels, Labels]):
    """Label maps (D, H, W), 0 the background."""

    headline = "dice"

    def shape_of(self, scan: Scan) -> Shape:
        """The plan's spacing."""
        d, h, w = scan.voxels.shape[1:]
        return target_shape((d, h, w), scan.spacing, self.spec.plan.spacing)

    def load(self, case: Case) -> Sample[Labels]:
        """UserError where the label map does not lie on the image or has a label without a name."""
        scan, sample = self.read(case)
        assert not isinstance(case.target, int | tuple)
        sample.truth = read_labels(case.target, scan)
        if int(sample.truth.max()) > len(self.spec.classes):
            raise UserError(f"{case.target}: label {sample.truth.max()}, but classes are {self.spec.classes}")
        d, h, w = sample.image.shape[1:]
        sample.target = resize_labels(sample.truth, (d, h, w))
        return sample

    def build(self, encoder: Encoder) -> TaskModel:
        """STU-Net's decoder, or the light one."""
        return SegmentationModel(encoder, len(self.spec.classes) + 1, self.spec.plan.is_2d)

    def batch(
        self, samples: Sequence[Sample[Labels]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, *patch) and labels (B, *patch)."""
        images, labels = [], []
        for sample in samples:
            assert sample.target is not None
            matrix = random_matrix(rng, config, self.spec.plan.spacing, self.spec.plan.is_2d, turn=True)
            window = Window(self._centre(sample.target, rng, fore), matrix, self.spec.plan.patch)
            images.append(extract(sample.image, window, sample.fill))
            labels.append(extract(torch.from_numpy(sample.target)[None], window, 0.0, nearest=True)[0])
        return vary_intensity(torch.stack(images), rng, config), torch.stack(labels).long()

    def _centre(self, labels: Labels, rng: np.random.Generator, fore: float) -> npt.NDArray[np.float64]:
        """The middle of a patch: on a voxel of a random present class, or anywhere the patch stays inside."""
        half = np.array(self.spec.plan.patch) / 2
        shape = np.array(labels.shape)
        low, high = np.minimum(half, shape / 2), np.maximum(shape - half, shape / 2)
        centre = rng.uniform(low, high)
        if rng.random() < fore:
            present = [k for k in range(1, len(self.spec.classes) + 1) if (labels == k).any()]
            if present:
                spots = np.flatnonzero(labels == rng.choice(present))
                spot = np.array(np.unravel_index(rng.choice(spots), labels.shape)) + 0.5
                centre = np.clip(spot, low, high)
        # On the voxel grid where the patch's own centre is, so that unturned patches are not blurred.
        return np.floor(centre) + (half % 1)

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """Dice + CE at every resolution of the decoder."""
        return deep_supervision(model(images), targets)

    def predict(self, members: Sequence[TaskModel], sample: Sample[Labels], device: torch.device) -> Labels:
        """Label map at the file's grid."""
        return self.segment(members, sample, device).labels

    def segment(
        self,
        members: Sequence[TaskModel],
        sample: Sample[Labels],
        device: torch.device,
        wanted: Wanted | None = None,
    ) -> Segmented:
        """Labels at the file's grid; probabilities and uncertainty as `wanted`. See `segmented`."""
        # What the GPU could train on at once, it can also look at; a CPU gains nothing from more than one.
        batch = self.spec.plan.batch if device.type == "cuda" else 1
        tiling = Tiling(self.spec.plan.patch, self.spec.inference.overlap, self.mirrors(), batch)
        temperature = getattr(self.spec, "temperature", 1.0)
        return segment_volume(members, sample.image, sample.fill, sample.shape, tiling, device, temperature, wanted)

    def record(self, case: Case, sample: Sample[Labels], prediction: Labels) -> Record:
        """Dice of each class; None where undefined."""
        assert sample.truth is not None
        values = dice(prediction, sample.truth, len(self.spec.classes))
        score = mean_defined(values)
        named = {k: None if np.isnan(v) else v for k, v in zip(self.spec.classes, values, strict=True)}
        return identity(case) | {"score": None if np.isnan(score) else score, "dice": named}

    def metrics(self) -> dict[str, Callable[[list[Record]], float]]:
        """Mean Dice over cases of the mean over classes, and of each class."""
        named: dict[str, Callable[[list[Record]], float]] = {"dice": _mean}
        if len(self.spec.classes) > 1:
            named |= {f"dice {name}": partial(_class_mean, name=name) for name in self.spec.classes}
        return named

    def picture(self, sample: Sample[Labels], prediction: Labels) -> Picture:
        """The slice with the most wrong voxels, or with the most labelled ones where none is wrong."""
        assert sample.truth is not None
        axis = int(np.argmin(sample.truth.shape))
        others = tuple(a for a in range(3) if a != axis)
        wrong, labelled = (sample.truth != prediction).sum(others), (sample.truth > 0).sum(others)
        index = int((wrong + labelled / (1 + labelled.max())).argmax())
        image = resize(sample.image[:1].numpy(), sample.shape)[0]
        parts = {"image": image.astype(np.float16), "truth": sample.truth, "prediction": prediction}
        return {name: upright(np.take(part, index, axis), sample.orientation, axis) for name, part in parts.items()}


def _mean(records: list[Record]) -> float:
    return mean_defined([float("nan") if r["score"] is None else r["score"] for r in records])


def _class_mean(records: list[Record], name: str) -> float:
    values = [r["dice"][name] for r in records]
    return mean_defined([float("nan") if value is None else value for value in values])
