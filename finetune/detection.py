"""The detection task: boxes of findings in whole scans or in windows, RetinaNet, average precision."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanforge.backbones.protocol import Encoder
from scanforge.backbones.registry import build as build_backbone
from scanforge.configs.errors import UserError
from scanforge.datasets.readers import Scan
from scanforge.finetune.adapter import Adapter, Picture, Sample, TaskModel, fitted_shape, identity
from scanforge.finetune.boxes.findings import Findings, of_list
from scanforge.finetune.boxes.geometry import in_patch
from scanforge.finetune.boxes.inference import Detector, find
from scanforge.finetune.boxes.masks import of_mask
from scanforge.finetune.boxes.plan import Measured, plan_detection
from scanforge.finetune.boxes.wbc import Found
from scanforge.finetune.boxes.windows import quarter_turn, sliding_windows, training_centre, turnable
from scanforge.finetune.cases import Case
from scanforge.finetune.config import AugmentationConfig, DetectionTask
from scanforge.finetune.heads.detection import DetectionModel
from scanforge.finetune.heads.pyramid import available_strides
from scanforge.finetune.metrics.detection import average_precision, match
from scanforge.finetune.metrics.intervals import Record
from scanforge.finetune.sampling import Window, extract, random_matrix, still_window, vary_intensity
from scanforge.finetune.volumes import Shape, read_labels, read_one, target_shape


class Detection(Adapter[Findings, Found]):
    """Boxes of findings of one or several classes; a scan may have none."""

    headline = "ap@0.1"

    @property
    def task(self) -> DetectionTask:
        """The options of this task."""
        assert isinstance(self.spec.task, DetectionTask)
        return self.spec.task

    @property
    def whole(self) -> bool:
        """Whether scans are scaled to fit the patch; otherwise they are seen in windows at the plan's spacing."""
        return self.spec.detection is None or self.spec.detection.whole_scan

    def shape_of(self, scan: Scan) -> Shape:
        """Scaled to fit into the patch, or at the plan's spacing."""
        return self._shapes(scan)[0 if self.whole else 1]

    def _shapes(self, scan: Scan) -> tuple[Shape, Shape]:
        d, h, w = scan.voxels.shape[1:]
        fitted = fitted_shape((d, h, w), scan.spacing, self.spec.plan)
        return fitted, target_shape((d, h, w), scan.spacing, self.spec.plan.spacing)

    def planned(self, cases: Sequence[Case]) -> "Detection":
        """The task with windows or whole scans, pyramid and anchors planned from these training cases.

        Call it before `load` and `build`. UserError where none of the cases has a box.
        """
        measured = []
        for case in cases:
            scan = read_one(case.image)
            fitted, at_spacing = self._shapes(scan)
            d, h, w = scan.voxels.shape[1:]
            measured.append(Measured(self._findings(case, scan), (d, h, w), at_spacing, fitted))
        with torch.device("meta"):
            encoder = build_backbone(self.spec.backbone)
        plan, anchors = plan_detection(
            measured, self.spec.plan.patch, available_strides(encoder, self.spec.plan.is_2d), self.task.whole_scan
        )
        return Detection(self.spec.model_copy(update={"anchors": anchors, "detection": plan}))

    def load(self, case: Case) -> Sample[Findings]:
        """Boxes from the mask or the list; UserError where one is empty, has no class or lies outside the scan."""
        scan, sample = self.read(case)
        sample.truth = self._findings(case, scan)
        sample.target = Findings(sample.truth.boxes * np.tile(_zoom(sample), 2), sample.truth.labels)
        return sample

    def _findings(self, case: Case, scan: Scan) -> Findings:
        n_classes, shape = len(self.spec.classes), scan.voxels.shape[1:]
        try:
            if isinstance(case.target, Path):
                return of_mask(read_labels(case.target, scan), n_classes, self.task.min_voxels, self.task.masks)
            assert isinstance(case.target, tuple)
            return of_list(case.target, n_classes, shape)
        except UserError as error:
            raise UserError(f"{case.image}: {error}") from error

    def build(self, encoder: Encoder) -> TaskModel:
        """RetinaNet; the task must be planned."""
        spec, task = self.spec, self.task
        assert spec.anchors is not None
        assert spec.detection is not None
        return DetectionModel(
            encoder,
            len(spec.classes),
            spec.plan.is_2d,
            spec.detection.strides,
            spec.anchors,
            task.score_threshold,
            task.boxes_per_scan,
        )

    def batch(
        self, samples: Sequence[Sample[Findings]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Images (B, C, *patch) and, for each, boxes (N, 2A) and labels (N,).

        Zoomed, mirrored and turned by quarters where that is exact; never turned otherwise: such a box is no box.
        """
        plan = self.spec.plan
        images, targets = [], []
        pairs = turnable(config.flip_axes, plan.spacing, plan.patch if self.whole else None)
        for sample in samples:
            assert sample.target is not None
            matrix = random_matrix(rng, config, plan.spacing, plan.is_2d, turn=False) @ quarter_turn(rng, pairs)
            window = Window(self._centre(sample, rng, fore), matrix, plan.patch)
            images.append(extract(sample.image, window, sample.fill))
            boxes, kept = in_patch(sample.target.boxes, window)
            flat = boxes[:, [1, 2, 4, 5]] if plan.is_2d else boxes
            targets.append((torch.from_numpy(flat).float(), torch.from_numpy(sample.target.labels[kept])))
        return vary_intensity(torch.stack(images), rng, config), targets

    def _centre(self, sample: Sample[Findings], rng: np.random.Generator, fore: float) -> npt.NDArray[np.float64]:
        d, h, w = sample.image.shape[1:]
        if self.whole:
            return still_window((d, h, w), self.spec.plan.patch).centre
        assert sample.target is not None
        return training_centre(sample.target, (d, h, w), self.spec.plan.patch, rng, fore)

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """Binary cross-entropy of hard samples + GIoU."""
        assert isinstance(model, DetectionModel)
        boxes, labels = zip(*((b.to(images.device), k.to(images.device)) for b, k in targets), strict=True)
        return model.losses(images, boxes, labels)

    def predict(self, members: Sequence[TaskModel], sample: Sample[Findings], device: torch.device) -> Found:
        """Boxes (N, 6) at the file's grid, scores (N,) and labels (N,), best first: clustered over members,
        mirrorings and windows."""
        plan, (d, h, w) = self.spec.plan, sample.image.shape[1:]
        if self.whole:
            windows = [still_window((d, h, w), plan.patch)]
        else:
            windows = sliding_windows((d, h, w), plan.patch, self.spec.inference.overlap)
        detectors = cast(Sequence[Detector], members)
        found = find(detectors, sample.image, sample.fill, windows, self.mirrors(), plan.batch, device)
        boxes = np.clip(found.boxes / np.tile(_zoom(sample), 2), 0, np.tile(sample.shape, 2))
        solid = (boxes[:, 3:] > boxes[:, :3]).all(1)
        kept = np.flatnonzero(solid)[: self.task.boxes_per_scan]
        return Found(boxes[kept], found.scores[kept], found.labels[kept])

    def record(self, case: Case, sample: Sample[Findings], prediction: Found) -> Record:
        """Scores and hits; the case's score is its own AP, or how sure of a finding it was where there is none."""
        _, scores, _ = prediction
        assert sample.truth is not None
        hits = {str(iou): _hits(prediction, sample.truth, iou) for iou in (0.1, 0.5)}
        own = average_precision(scores, np.array(hits["0.1"]), len(sample.truth))
        score = own if len(sample.truth) else 1.0 - float(max(scores, default=0.0))
        detail = {"scores": [float(s) for s in scores], "hits": hits, "boxes": len(sample.truth)}
        return identity(case) | {"score": score} | detail

    def metrics(self) -> dict[str, Callable[[list[Record]], float]]:
        """Average precision of all boxes pooled, at IoU 0.1 and 0.5."""
        return {f"ap@{iou}": partial(_pooled, iou=iou) for iou in ("0.1", "0.5")}

    def picture(self, sample: Sample[Findings], prediction: Found) -> Picture:
        """The image and all boxes; a volume is seen in the slice through its first true or best box."""
        assert sample.truth is not None
        truth = sample.truth.boxes
        first = next(iter([*truth, *prediction.boxes]), np.array([0.0, 0, 0, *sample.shape]))
        index = int(np.clip((first[0] + first[3]) / 2, 0, sample.shape[0] - 1) * _zoom(sample)[0])
        image = sample.image[0, min(index, sample.image.shape[1] - 1)].numpy()
        zoom = np.tile(_zoom(sample), 2)
        return {
            "image": image.astype(np.float16),
            "truth": (truth * zoom)[:, [1, 2, 4, 5]],
            "boxes": (prediction.boxes * zoom)[:, [1, 2, 4, 5]],
            "scores": prediction.scores,
        }


def _zoom(sample: Sample[Any]) -> npt.NDArray[np.float64]:
    return np.array(sample.image.shape[1:]) / np.array(sample.shape)


def _hits(found: Found, truth: Findings, iou: float) -> list[bool]:
    """A box hits only what is of its own class."""
    hits = np.zeros(len(found.scores), bool)
    for label in np.unique(found.labels):
        own = found.labels == label
        hits[own] = match(found.boxes[own], found.scores[own], truth.boxes[truth.labels == label], iou)
    return [bool(hit) for hit in hits]


def _pooled(records: list[Record], iou: str) -> float:
    scores = np.concatenate([np.array(record["scores"], float) for record in records])
    hits = np.concatenate([np.array(record["hits"][iou], bool) for record in records])
    return average_precision(scores, hits, sum(record["boxes"] for record in records))
