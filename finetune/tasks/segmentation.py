"""The segmentation task: patches, Dice + CE, sliding windows; Dice, NSD and HD95."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.augment.window import PatchWindow, extract, extract_labels
from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.readers.scratch import scratch_folder
from scanfoundry.finetune.cases.augmentation import random_matrix, random_warp
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.cases.label_values import IGNORE
from scanfoundry.finetune.cases.volumes import Labels, read_labels, resize, resize_labels, target_shape, volumes_of
from scanfoundry.finetune.config.study import AugmentationConfig, ValidationConfig
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.heads.segmentation import SegmentationModel
from scanfoundry.finetune.inference.calibration import drawn_spots, temperature_by
from scanfoundry.finetune.inference.postprocess import apply, choose
from scanfoundry.finetune.inference.segmented import SegmentationRequest, Segmented, segment_volume
from scanfoundry.finetune.inference.windows import Tiling
from scanfoundry.finetune.losses import class_weights, deep_supervision
from scanfoundry.finetune.metrics.dice import dice, mean_defined
from scanfoundry.finetune.metrics.intervals import Statistic
from scanfoundry.finetune.metrics.reliability import counted, ece, pooled
from scanfoundry.finetune.metrics.surface import surface_scores
from scanfoundry.finetune.metrics.weighted import Record, mean_of
from scanfoundry.finetune.sample import HeldBackCase, Sample, Validation, upright
from scanfoundry.finetune.task import Adapter, TaskModel, identity
from scanfoundry.finetune.task_parts import (
    BACKGROUND,
    FRACTIONS,
    LABEL_MAP,
    BundleOutput,
    ExportTexts,
    OutputFiles,
    Picture,
    ReportTexts,
    TableRow,
)

SPOTS = 20_000  # voxels of a scan that calibration looks at


class Segmentation(Adapter[Labels, Segmented]):
    """Label maps (D, H, W), 0 the background."""

    headline = "dice"
    surfaces = ("dice", "nsd", "hd95")
    overview = (*surfaces, "ece")
    report = ReportTexts(
        score="Dice",
        notes="Dice is 2|P and T| / (|P| + |T|); NSD the share of both surfaces within task.tolerance (1 mm "
        "unless set) of the other; HD95 the larger 95th percentile of the distances between the surfaces, in mm, lower "
        "is better. Truth and prediction both empty: undefined, left out. One of them empty: Dice and NSD are 0, HD95 "
        "is the diagonal of the scan, so that predicting nothing never pays. ECE: of voxels within 5 of the box around "
        "the truth; lower is better.",
        limits="Dice, NSD and HD95 are taken at each file's own grid; a mask thinner than a voxel is not seen.",
        pictures="Shown: the slice with the most wrong voxels.",
        outlines=True,
    )
    export = ExportTexts(
        prediction="label_map",
        meaning="logits of each class and voxel; the largest is the label, 0 the background",
        steps="Cover it with windows of the patch's size (overlap as given, evenly spread); average their "
        "logits with Gaussian weights of sigma patch / 8 and over `mirrors` (axes flipped together); resize the "
        "logits back to the file's grid, take the largest, and set to 0 what `postprocess` removes of each class: "
        "components (26 neighbours) below `min_mm3`, or all but the `largest`. "
        "Class k is written as the k-th of `values`.",
        bundle=BundleOutput(
            "image", "labels", "a label map for each scan, NIfTI in the scan's own geometry (PNG for an image)"
        ),
    )
    files = (LABEL_MAP, FRACTIONS)
    options = frozenset({"probabilities", "uncertainty"})
    frames_apart = True

    def shape_of(self, scan: Scan) -> Size3D:
        """The plan's spacing."""
        d, h, w = scan.voxels.shape[1:]
        return target_shape((d, h, w), scan.spacing, self.spec.plan.spacing)

    def load(self, case: Case) -> Sample[Labels]:
        """UserError where the label map does not lie on the image or has a value that is of no class."""
        scan, sample = self.read(case)
        assert case.target is not None
        assert not isinstance(case.target, int | float | Boxes)
        sample.truth = read_labels(case.target, scan, self.spec.labels)
        d, h, w = sample.image.shape[1:]
        sample.target = resize_labels(sample.truth, (d, h, w))
        return sample

    def build(self, encoder: Encoder) -> TaskModel:
        """STU-Net's decoder, or the light one."""
        return SegmentationModel(encoder, len(self.spec.classes) + 1, self.spec.plan.is_2d)

    def head_rows(self) -> list[str]:
        """The background, and the classes."""
        return [BACKGROUND, *self.spec.classes]

    def batch(
        self, samples: Sequence[Sample[Labels]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, *patch) and labels (B, *patch)."""
        plan, images, labels = self.spec.plan, [], []
        for sample in samples:
            assert sample.target is not None
            matrix = random_matrix(rng, config, plan.spacing, plan.is_2d, turn=True)
            warp = random_warp(rng, config, plan.spacing, plan.patch)
            window = PatchWindow(self._centre(sample.target, rng, fore), matrix, plan.patch, warp)
            images.append(extract(sample.image, window, sample.fill))
            labels.append(extract_labels(sample.target, window))
        return self.varied(torch.stack(images), samples, rng, config), torch.stack(labels).long()

    def _centre(self, labels: Labels, rng: np.random.Generator, fore: float) -> npt.NDArray[np.float64]:
        """The middle of a patch: on a voxel of a random present class, or anywhere the patch stays inside, of a scan
        that is labelled in part on a voxel that somebody has looked at."""
        half = np.array(self.spec.plan.patch) / 2
        shape = np.array(labels.shape)
        low, high = np.minimum(half, shape / 2), np.maximum(shape - half, shape / 2)
        centre, spots = rng.uniform(low, high), np.zeros(0, np.intp)
        if rng.random() < fore:
            present = [k for k in range(1, len(self.spec.classes) + 1) if (labels == k).any()]
            if present:
                spots = np.flatnonzero(labels == rng.choice(present))
        if not len(spots) and self.spec.labels.ignores and (labels == IGNORE).any():
            spots = np.flatnonzero(labels != IGNORE)
        if len(spots):
            spot = np.array(np.unravel_index(rng.choice(spots), labels.shape)) + 0.5
            centre = np.clip(spot, low, high)
        # On the voxel grid where the patch's own centre is, so that unturned patches are not blurred.
        return np.floor(centre) + (half % 1)

    def planned(self, samples: Sequence[Sample[Labels]]) -> Self:
        """Weights of background and classes by their voxels, as `loss.class_weights` says."""
        n_labels = len(self.spec.classes) + 1
        counts = sum(np.bincount(s.target.ravel(), minlength=n_labels) for s in samples if s.target is not None)
        weights = class_weights(np.asarray(counts)[:n_labels].tolist(), self.spec.loss.class_weights)
        return self.with_spec(class_weights=weights)

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """Dice and the configured term at every resolution of the decoder."""
        weights = self.spec.class_weights
        weight = None if weights is None else torch.tensor(weights, device=images.device)
        ignored = IGNORE if self.spec.labels.ignores else None
        return deep_supervision(model(images), targets, self.spec.loss, weight, ignored)

    @property
    def tolerance(self) -> float:
        """Of the surface Dice, in mm."""
        assert isinstance(self.spec.task, SegmentationTask)
        return self.spec.task.tolerance

    def held(self, sample: Sample[Labels], prediction: Segmented) -> list[HeldBackCase]:
        """Prediction and truth at the file's grid."""
        assert sample.truth is not None
        known = _labels_at_spots(sample.truth, prediction)
        found, truth = self._looked_at(prediction.labels, sample.truth)
        return [HeldBackCase(found, truth, sample.voxel_mm3, prediction.at_spots, known)]

    def _looked_at(self, found: Labels, truth: Labels) -> tuple[Labels, Labels]:
        """Prediction and truth with the background in both where nobody has looked."""
        if not self.spec.labels.ignores:
            return found, truth
        out = truth == IGNORE
        return np.where(out, 0, found).astype(np.uint8), np.where(out, 0, truth).astype(np.uint8)

    def settled(self, held: Validation, config: ValidationConfig) -> Self:
        """Which components are removed after prediction, and the temperature of the voxels' probabilities."""
        decided: dict[str, Any] = {}
        if config.postprocess:
            decided["postprocess"] = choose(held.maps, len(self.spec.classes))
        if config.calibrate:
            probabilities = np.concatenate([m.probabilities for m in held.maps if m.probabilities is not None])
            labels = np.concatenate([m.labels for m in held.maps if m.labels is not None])
            decided["temperature"] = temperature_by(probabilities, labels)
        return self.with_spec(**decided)

    def predict(self, members: Sequence[TaskModel], sample: Sample[Labels], device: torch.device) -> Segmented:
        """Label map at the file's grid; where the truth is known also probabilities of some voxels around it."""
        spots = None if sample.truth is None else drawn_spots(self._looked_at(sample.truth, sample.truth)[1], SPOTS)
        if spots is not None and sample.truth is not None:
            spots = spots[sample.truth[tuple(spots.T)] != IGNORE]
        return self.segment(members, sample, device, SegmentationRequest(spots=spots))

    def segment(
        self,
        members: Sequence[TaskModel],
        sample: Sample[Labels],
        device: torch.device,
        wanted: SegmentationRequest | None = None,
    ) -> Segmented:
        """Labels at the file's grid; probabilities and uncertainty as `wanted`. See `segmented`."""
        # What the GPU could train on at once, it can also look at; a CPU gains nothing from more than one.
        batch = self.spec.plan.batch if device.type == "cuda" else 1
        tiling = Tiling(self.spec.plan.patch, self.spec.inference.overlap, self.mirrors(), batch)
        temperature = self.spec.temperature
        made = segment_volume(members, sample.image, sample.fill, sample.shape, tiling, device, temperature, wanted)
        return replace(made, labels=apply(made.labels, self.spec.postprocess, sample.voxel_mm3))

    def relabelled(self, members: Sequence[TaskModel], sample: Sample[Labels], device: torch.device) -> Sample[Labels]:
        """The label map that the models give the scan; its truth stays unread."""
        d, h, w = sample.image.shape[1:]
        return replace(sample, target=resize_labels(self.segment(members, sample, device).labels, (d, h, w)))

    def record(self, case: Case, sample: Sample[Labels], prediction: Segmented) -> Record:
        """Dice, NSD and HD95 (mm) of each class at the file's grid, None where undefined; score: the mean Dice.
        reliability: of voxels around the truth, see `metrics.reliability`. Where nobody has looked, nothing counts."""
        assert sample.truth is not None
        n_classes = len(self.spec.classes)
        labels, truth = self._looked_at(prediction.labels, sample.truth)
        surface = surface_scores(labels, truth, n_classes, sample.spacing, self.tolerance)
        values = {
            "dice": dice(labels, truth, n_classes),
            "nsd": [scores.nsd for scores in surface],
            "hd95": [scores.hd95 for scores in surface],
        }
        named = {
            name: {k: None if np.isnan(v) else v for k, v in zip(self.spec.classes, each, strict=True)}
            for name, each in values.items()
        }
        score = mean_defined(values["dice"])
        found, known = prediction.at_spots, _labels_at_spots(sample.truth, prediction)
        bins = None if found is None or known is None else counted(found, known)
        return identity(case) | {"score": None if np.isnan(score) else score, "reliability": bins, **named}

    def metrics(self) -> dict[str, Statistic]:
        """Mean over cases of the mean over classes, and of each class: Dice, NSD, HD95. ECE of all their voxels."""
        named: dict[str, Statistic] = {name: mean_of(partial(_class_mean, name=name)) for name in self.surfaces}
        named["ece"] = ece
        if len(self.spec.classes) > 1:
            for name in self.surfaces:
                named |= {f"{name} {k}": mean_of(partial(_of_class, name=name, label=k)) for k in self.spec.classes}
        return named

    def columns(self) -> list[str]:
        """The label map's name, and the volume of each class."""
        empty = Scan(np.zeros((1, 1, 1, 1), np.uint8), (1.0, 1.0, 1.0))
        return ["output", *volumes_of(empty.voxels[0], empty, self.spec.classes)]

    def write(
        self, members: Sequence[TaskModel], sample: Sample[Labels], device: torch.device, files: OutputFiles
    ) -> TableRow:
        """The label map, probabilities and maps of uncertainty where they are asked for, and volumes."""
        # Beside the outputs: a scratch disk that holds these holds the probabilities before they are packed.
        with scratch_folder() as store:
            wanted = SegmentationRequest(files.probabilities, files.uncertainty, store=store)
            made = self.segment(members, sample, device, wanted)
            written = files.put(LABEL_MAP, made.labels)
            if made.probabilities is not None:
                files.put(FRACTIONS, made.probabilities, "probabilities")
            for name, values in made.maps.items():
                files.put(FRACTIONS, values, name)
            return {"output": written} | volumes_of(made.labels, files.scan, self.spec.classes)

    @classmethod
    def charts(
        cls, shown: list[Record], by_arm: Mapping[str, list[Record]], classes: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Reliability of voxels."""
        from scanfoundry.finetune.drawing import charts  # prediction needs no matplotlib

        caption = "Reliability of voxels around the truth; the numbers are shares of them."
        return [(caption, charts.reliability(pooled(shown), True))]

    @staticmethod
    def draw(axes: Any, picture: Picture, n_classes: int) -> None:
        """Outlines."""
        from scanfoundry.finetune.drawing import overlays

        overlays.contours(axes, picture, n_classes)

    def output_names(self) -> list[str]:
        """Background and classes."""
        return ["background", *self.spec.classes]

    def picture(self, sample: Sample[Labels], prediction: Segmented) -> Picture:
        """The slice with the most wrong voxels, or with the most labelled ones where none is wrong."""
        assert sample.truth is not None
        found, truth = self._looked_at(prediction.labels, sample.truth)
        axis = int(np.argmin(truth.shape))
        others = tuple(a for a in range(3) if a != axis)
        wrong, labelled = (truth != found).sum(others), (truth > 0).sum(others)
        index = int((wrong + labelled / (1 + labelled.max())).argmax())
        image = resize(sample.image[:1].numpy(), sample.shape)[0]
        parts = {"image": image.astype(np.float16), "truth": truth, "prediction": found}
        return {name: upright(np.take(part, index, axis), sample.orientation, axis) for name, part in parts.items()}


def _labels_at_spots(truth: Labels, prediction: Segmented) -> Labels | None:
    return None if prediction.spots is None else truth[tuple(prediction.spots.T)]


def _class_mean(record: Record, name: str) -> float:
    return mean_defined([np.nan if value is None else value for value in record[name].values()])


def _of_class(record: Record, name: str, label: str) -> float | None:
    return record[name][label]
