"""The detection task: whole scans fitted into the patch, RetinaNet, average precision."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanforge.backbones.protocol import Encoder
from scanforge.datasets.readers import Scan
from scanforge.finetune.adapter import Adapter, Picture, Sample, Spec, TaskModel, centred, fitted_shape, identity
from scanforge.finetune.config import AugmentationConfig, DetectionTask
from scanforge.finetune.data.cases import Case
from scanforge.finetune.data.findings import findings
from scanforge.finetune.heads.detection import DetectionModel, plan_anchors, suppress
from scanforge.finetune.metrics.detection import average_precision
from scanforge.finetune.metrics.froc import (
    FALSE_POSITIVES,
    IOUS,
    average_precision_at,
    hit_bits,
    hits_at,
    sensitivity_at,
)
from scanforge.finetune.metrics.intervals import Statistic
from scanforge.finetune.metrics.weighted import Record
from scanforge.finetune.sampling import Window, extract, random_matrix, still_window
from scanforge.finetune.volumes import Shape

Boxes = npt.NDArray[np.float64]  # (N, 6) d0 h0 w0 d1 h1 w1, half-open, voxels
KEPT_SHARE = 0.25  # a box of which less is left inside the patch is dropped


class Detection(Adapter[Boxes, tuple[Boxes, npt.NDArray]]):
    """Boxes of one kind of finding; a scan may have none."""

    headline = "ap@0.1"
    overview = ("ap@0.1", "ap@0.5", "map@0.1:0.5", "froc@0.1", "froc@0.5")

    @property
    def task(self) -> DetectionTask:
        """The options of this task."""
        assert isinstance(self.spec.task, DetectionTask)
        return self.spec.task

    @property
    def axes(self) -> list[int]:
        """Columns of a box that the network sees: the slice alone in 2D."""
        return [1, 2, 4, 5] if self.spec.plan.is_2d else [0, 1, 2, 3, 4, 5]

    def shape_of(self, scan: Scan) -> Shape:
        """Scaled to fit into the patch."""
        d, h, w = scan.voxels.shape[1:]
        return fitted_shape((d, h, w), scan.spacing, self.spec.plan)

    def load(self, case: Case) -> Sample[Boxes]:
        """Boxes from the mask or the list; UserError where one lies outside the scan."""
        scan, sample = self.read(case)
        found = findings(case, scan, self.task, self.spec.classes)
        sample.truth = np.array([box for box, _ in found], float).reshape(-1, 6)
        sample.target = sample.truth * np.tile(self._zoom(sample), 2)
        return sample

    def planned(self, samples: Sequence[Sample[Boxes]]) -> Spec:
        """The spec with anchors planned from these training samples."""
        boxes = np.concatenate([sample.target for sample in samples if sample.target is not None])
        sizes = (boxes[:, 3:] - boxes[:, :3])[:, 1 if self.spec.plan.is_2d else 0 :]
        return self.spec.model_copy(update={"anchors": plan_anchors(sizes)})

    def build(self, encoder: Encoder) -> TaskModel:
        """RetinaNet; the anchors must be planned."""
        assert self.spec.anchors is not None
        task, plan = self.task, self.spec.plan
        return DetectionModel(encoder, self.spec.anchors, plan.is_2d, task.score_threshold, task.boxes_per_scan)

    def batch(
        self, samples: Sequence[Sample[Boxes]], rng: np.random.Generator, config: AugmentationConfig, fore: float
    ) -> tuple[Tensor, list[Tensor]]:
        """Images (B, C, *patch) and boxes; zoomed and mirrored, never turned: a turned box is no box."""
        images, boxes = [], []
        for sample in samples:
            d, h, w = sample.image.shape[1:]
            still = still_window((d, h, w), self.spec.plan.patch)
            matrix = random_matrix(rng, config, self.spec.plan.spacing, self.spec.plan.is_2d, turn=False)
            window = Window(still.centre, matrix, still.size)
            images.append(extract(sample.image, window, sample.fill))
            assert sample.target is not None
            boxes.append(torch.from_numpy(boxes_in(sample.target, window)[:, self.axes]).float())
        return self.varied(torch.stack(images), samples, rng, config), boxes

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """Binary cross-entropy of hard samples + GIoU."""
        assert isinstance(model, DetectionModel)
        return model.losses(images, [boxes.to(images.device) for boxes in targets])

    @torch.inference_mode()
    def predict(
        self, members: Sequence[TaskModel], sample: Sample[Boxes], device: torch.device
    ) -> tuple[Boxes, npt.NDArray]:
        """Boxes at the file's grid and their scores, best first."""
        image = centred(sample, self.spec.plan).to(device)
        found = [self._one_pass(member, image, axes) for member in members for axes in self.mirrors()]
        boxes, scores = (torch.cat(part) for part in zip(*found, strict=True))
        if len(found) > 1:
            kept = suppress(boxes, scores, self.task.boxes_per_scan)
            boxes, scores = boxes[kept], scores[kept]
        d, h, w = sample.image.shape[1:]
        return self._at_file_grid(boxes.numpy(), sample, still_window((d, h, w), self.spec.plan.patch)), scores.numpy()

    def _one_pass(self, model: TaskModel, image: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        boxes, scores = model(image.flip([axis + 2 for axis in axes]))[0]
        boxes, scores = boxes.float().cpu().clone(), scores.float().cpu()
        lead = 1 if self.spec.plan.is_2d else 0
        n_axes = boxes.shape[1] // 2
        for axis in axes:
            start, stop = axis - lead, axis - lead + n_axes
            boxes[:, [start, stop]] = self.spec.plan.patch[axis] - boxes[:, [stop, start]]
        return boxes, scores

    def _at_file_grid(self, boxes: npt.NDArray, sample: Sample[Boxes], window: Window) -> Boxes:
        full = np.tile([0.0, 0, 0, 1, 1, 1], (len(boxes), 1))
        full[:, self.axes] = boxes
        corners = np.concatenate([window.to_scan(full[:, :3]), window.to_scan(full[:, 3:])], axis=1)
        return np.clip(corners / np.tile(self._zoom(sample), 2), 0, np.tile(sample.shape, 2))

    def _zoom(self, sample: Sample[Boxes]) -> npt.NDArray[np.float64]:
        return np.array(sample.image.shape[1:]) / np.array(sample.shape)

    def record(self, case: Case, sample: Sample[Boxes], prediction: tuple[Boxes, npt.NDArray]) -> Record:
        """Scores, classes and hits of the boxes (see `metrics.froc`); the case's score is its own AP at IoU 0.1 over
        all classes, or how sure of a finding it was where there is none."""
        assert sample.truth is not None
        boxes, scores, labels = *prediction, np.zeros(len(prediction[0]), int)
        truth, truth_labels = sample.truth, np.zeros(len(sample.truth), int)
        bits = hit_bits(boxes, scores, labels, truth, truth_labels)
        truths = np.bincount(truth_labels, minlength=len(self.spec.classes)).tolist()
        detail: Record = {"scores": scores.tolist(), "labels": labels.tolist(), "hits": bits, "truths": truths}
        own = average_precision(scores, hits_at(detail, 0.1), len(truth))
        score = own if len(truth) else 1.0 - float(max(scores, default=0.0))
        return identity(case) | {"score": score} | detail

    def metrics(self) -> dict[str, Statistic]:
        """Of all boxes together, mean over classes: AP at IoU 0.1 and 0.5, mean AP over IoU 0.1 to 0.5, FROC (the mean
        sensitivity at 1/8 to 8 false positives per image), each of its points, and AP of each of several classes."""
        every = list(range(len(self.spec.classes)))
        named: dict[str, Statistic] = {f"ap@{iou}": average_precision_at([iou], every) for iou in (0.1, 0.5)}
        named["map@0.1:0.5"] = average_precision_at(IOUS, every)
        allowed = list(FALSE_POSITIVES.values())
        named |= {f"froc@{iou}": sensitivity_at(iou, every, allowed) for iou in (0.1, 0.5)}
        for iou in (0.1, 0.5):
            if len(every) > 1:
                named |= {f"ap@{iou} {n}": average_precision_at([iou], [k]) for k, n in enumerate(self.spec.classes)}
            named |= {f"froc@{iou} {n}": sensitivity_at(iou, every, [fp]) for n, fp in FALSE_POSITIVES.items()}
        return named

    def picture(self, sample: Sample[Boxes], prediction: tuple[Boxes, npt.NDArray]) -> Picture:
        """The image and all boxes; a volume is seen in the slice through its first true or best box."""
        assert sample.truth is not None
        boxes, scores = prediction
        first = next(iter([*sample.truth, *boxes]), np.array([0.0, 0, 0, *sample.shape]))
        index = int(np.clip((first[0] + first[3]) / 2, 0, sample.shape[0] - 1) * self._zoom(sample)[0])
        image = sample.image[0, min(index, sample.image.shape[1] - 1)].numpy()
        zoom = np.tile(self._zoom(sample), 2)
        return {
            "image": image.astype(np.float16),
            "truth": (sample.truth * zoom)[:, [1, 2, 4, 5]],
            "boxes": (boxes * zoom)[:, [1, 2, 4, 5]],
            "scores": scores,
        }


def boxes_in(boxes: Boxes, window: Window) -> Boxes:
    """Boxes (N, 6) as they stand in the patch: clipped to it, dropped where under KEPT_SHARE is left."""
    corners = np.stack([window.to_patch(boxes[:, :3]), window.to_patch(boxes[:, 3:])])
    low, high = corners.min(0), corners.max(0)
    inside = np.concatenate([np.clip(low, 0, window.size), np.clip(high, 0, window.size)], axis=1)
    kept = (inside[:, 3:] - inside[:, :3]).prod(1) >= KEPT_SHARE * (high - low).prod(1)
    return inside[kept]
