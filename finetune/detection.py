"""The detection task: whole scans fitted into the patch, RetinaNet, average precision."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import find_objects, label
from torch import Tensor

from scanforge.backbones.protocol import Encoder
from scanforge.configs.errors import UserError
from scanforge.datasets.readers import Scan
from scanforge.finetune.adapter import Adapter, Picture, Sample, TaskModel, centred, fitted_shape, identity
from scanforge.finetune.cases import Case
from scanforge.finetune.config import AugmentationConfig, DetectionTask
from scanforge.finetune.heads.detection import DetectionModel, plan_anchors, suppress
from scanforge.finetune.metrics.detection import average_precision, match
from scanforge.finetune.metrics.intervals import Record
from scanforge.finetune.sampling import Window, extract, random_matrix, still_window, vary_intensity
from scanforge.finetune.volumes import Shape, read_labels

Boxes = npt.NDArray[np.float64]  # (N, 6) d0 h0 w0 d1 h1 w1, half-open, voxels
KEPT_SHARE = 0.25  # a box of which less is left inside the patch is dropped


def boxes_of_mask(mask: npt.NDArray, min_voxels: int) -> Boxes:
    """Boxes of the connected components (faces touching) of a mask (D, H, W); small components are dropped."""
    components, n = label(mask > 0)
    sizes = np.bincount(components.ravel(), minlength=n + 1)[1:]
    found = [
        [s.start for s in part] + [s.stop for s in part]
        for part, size in zip(find_objects(components), sizes, strict=True)
        if size >= min_voxels
    ]
    return np.array(found, float).reshape(-1, 6)


class Detection(Adapter[Boxes, tuple[Boxes, npt.NDArray]]):
    """Boxes of one kind of finding; a scan may have none."""

    headline = "ap@0.1"

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
        if isinstance(case.target, Path):
            sample.truth = boxes_of_mask(read_labels(case.target, scan), self.task.min_voxels)
        else:
            sample.truth = np.array(case.target, float).reshape(-1, 6)
            if len(sample.truth) and (sample.truth.min() < 0 or (sample.truth[:, 3:] > np.array(sample.shape)).any()):
                raise UserError(f"{case.image}: a box reaches outside the image of (D, H, W) = {sample.shape}")
        sample.target = sample.truth * np.tile(self._zoom(sample), 2)
        return sample

    def with_anchors(self, samples: Sequence[Sample[Boxes]]) -> "Detection":
        """The task with anchors planned from these training samples."""
        boxes = np.concatenate([sample.target for sample in samples if sample.target is not None])
        sizes = (boxes[:, 3:] - boxes[:, :3])[:, 1 if self.spec.plan.is_2d else 0 :]
        return Detection(self.spec.model_copy(update={"anchors": plan_anchors(sizes)}))

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
        return vary_intensity(torch.stack(images), rng, config), boxes

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
        found = [self._one_pass(model, image, axes) for model in members for axes in self.mirrors()]
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
        """Scores and hits; the case's score is its own AP, or how sure of a finding it was where there is none."""
        boxes, scores = prediction
        assert sample.truth is not None
        hits = {str(iou): match(boxes, scores, sample.truth, iou) for iou in (0.1, 0.5)}
        own = average_precision(scores, np.array(hits["0.1"]), len(sample.truth))
        score = own if len(sample.truth) else 1.0 - float(max(scores, default=0.0))
        detail = {"scores": [float(s) for s in scores], "hits": hits, "boxes": len(sample.truth)}
        return identity(case) | {"score": score} | detail

    def metrics(self) -> dict[str, Callable[[list[Record]], float]]:
        """Average precision of all boxes pooled, at IoU 0.1 and 0.5."""
        return {f"ap@{iou}": partial(_pooled, iou=iou) for iou in ("0.1", "0.5")}

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


def _pooled(records: list[Record], iou: str) -> float:
    scores = np.concatenate([np.array(record["scores"], float) for record in records])
    hits = np.concatenate([np.array(record["hits"][iou], bool) for record in records])
    return average_precision(scores, hits, sum(record["boxes"] for record in records))
