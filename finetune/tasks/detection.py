"""The detection task: boxes of findings in whole scans or in windows, RetinaNet, average precision."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import build as build_backbone
from scanfoundry.configs.geometry import Size3D, Spacing3D
from scanfoundry.datasets.augment.window import PatchWindow, boxes_in_patch, extract, identity_patch
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.boxes.inference import Detector, find
from scanfoundry.finetune.boxes.network import in_plane, to_network
from scanfoundry.finetune.boxes.plan import Measured, plan_detection
from scanfoundry.finetune.boxes.windows import quarter_turn, sliding_windows, training_centre, turnable
from scanfoundry.finetune.boxes.world import CONVENTIONS, as_json
from scanfoundry.finetune.cases.augmentation import random_matrix
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.cases.channels import read_channels
from scanfoundry.finetune.cases.volumes import target_shape
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.checks.findings import findings
from scanfoundry.finetune.config.study import AugmentationConfig
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.heads.decoding_rule import decoding_rule
from scanfoundry.finetune.heads.detection import DetectionModel
from scanfoundry.finetune.heads.pyramid import available_strides
from scanfoundry.finetune.metrics.detection import average_precision
from scanfoundry.finetune.metrics.froc import (
    FALSE_POSITIVES,
    IOUS,
    average_precision_at,
    hit_bits,
    hits_at,
    sensitivity_at,
)
from scanfoundry.finetune.metrics.intervals import Statistic
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.sample import Sample, fitted_shape
from scanfoundry.finetune.task import Adapter, TaskModel, identity
from scanfoundry.finetune.task_parts import BOXES, OutputFiles, Picture, ReportTexts, TableRow


class Detection(Adapter[Boxes, Boxes]):
    """Boxes of findings of one or several classes; a scan may have none."""

    headline = "ap@0.1"
    target_type = Boxes
    overview = ("ap@0.1", "ap@0.5", "map@0.1:0.5", "froc@0.1", "froc@0.5")
    report = ReportTexts(
        score="AP of the case (1 - top score where there is no finding)",
        notes="AP is the area under precision and recall (all points), the mean over classes. FROC is the mean "
        "sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan, scans without a finding counted.",
        limits="Findings below the resolution of the plan are not seen. Scores rank boxes; no probabilities.",
        pictures="Boxes of a score below 0.2 are not drawn.",
    )
    table = "predictions.json"
    conventions = CONVENTIONS
    files = (BOXES,)

    @property
    def task(self) -> DetectionTask:
        """The options of this task."""
        assert isinstance(self.spec.task, DetectionTask)
        return self.spec.task

    @property
    def whole(self) -> bool:
        """Whether scans are scaled to fit the patch; otherwise they are seen in windows at the plan's spacing."""
        return self.spec.detection is None or self.spec.detection.whole_scan

    def shape_of(self, scan: Scan) -> Size3D:
        """Scaled to fit into the patch, or at the plan's spacing."""
        d, h, w = scan.voxels.shape[1:]
        return self._shapes((d, h, w), scan.spacing)[0 if self.whole else 1]

    def _shapes(self, shape: Size3D, spacing: Spacing3D) -> tuple[Size3D, Size3D]:
        plan = self.spec.plan
        return fitted_shape(shape, spacing, plan), target_shape(shape, spacing, plan.spacing)

    def surveyed(self, cases: Sequence[Case], checked: Checked | None = None) -> Self:
        """Windows or whole scans, pyramid and anchors, planned from these training cases.

        checked: what is known of the cases; those that it does not know are read. UserError where none of the cases
        has a box.
        """
        measured = []
        for case in cases:
            if checked is not None and case.key in checked.boxes:
                _, shape, spacing = checked.grids[case.key]
                found = checked.boxes[case.key]
            else:
                scan = next(scan for scan in read_channels(case.images) if scan is not None)
                d, h, w = scan.voxels.shape[1:]
                shape, spacing, found = (d, h, w), scan.spacing, self._findings(case, scan)
            fitted, at_spacing = self._shapes(shape, spacing)
            measured.append(Measured(found, shape, at_spacing, fitted))
        with torch.device("meta"):
            encoder = build_backbone(self.spec.backbone)
        strides = available_strides(encoder, self.spec.plan.is_2d)
        plan, anchors = plan_detection(measured, self.spec.plan.patch, strides, self.task.whole_scan)
        return self.with_spec(anchors=anchors, detection=plan)

    def load(self, case: Case) -> Sample[Boxes]:
        """Boxes from the mask or the list; UserError where one is empty, has no class or lies outside the scan."""
        scan, sample = self.read(case)
        sample.truth = self._findings(case, scan)
        sample.target = sample.truth.scaled(_zoom(sample))
        return sample

    def _findings(self, case: Case, scan: Scan) -> Boxes:
        return findings(case, scan, self.task, self.spec.classes)

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
            spec.detection.sampled,
        )

    def batch(
        self, samples: Sequence[Sample[Boxes]], rng: np.random.Generator, config: AugmentationConfig, fore: float
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
            window = PatchWindow(self._centre(sample, rng, fore), matrix, plan.patch)
            images.append(extract(sample.image, window, sample.fill))
            corners, kept = boxes_in_patch(sample.target.corners, window)
            targets.append(to_network(Boxes(corners, sample.target.labels[kept]), plan.is_2d))
        return self.varied(torch.stack(images), samples, rng, config), targets

    def _centre(self, sample: Sample[Boxes], rng: np.random.Generator, fore: float) -> npt.NDArray[np.float64]:
        d, h, w = sample.image.shape[1:]
        if self.whole:
            return identity_patch((d, h, w), self.spec.plan.patch).centre
        assert sample.target is not None
        return training_centre(sample.target, (d, h, w), self.spec.plan.patch, rng, fore)

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """Binary cross-entropy of hard samples + GIoU."""
        assert isinstance(model, DetectionModel)
        boxes, labels = zip(*((b.to(images.device), k.to(images.device)) for b, k in targets), strict=True)
        return model.losses(images, boxes, labels)

    def predict(self, members: Sequence[TaskModel], sample: Sample[Boxes], device: torch.device) -> Boxes:
        """Boxes at the file's grid, clustered over members, mirrorings and windows."""
        plan, (d, h, w) = self.spec.plan, sample.image.shape[1:]
        if self.whole:
            windows = [identity_patch((d, h, w), plan.patch)]
        else:
            windows = sliding_windows((d, h, w), plan.patch, self.spec.inference.overlap)
        detectors = cast(Sequence[Detector], members)
        found = find(detectors, sample.image, sample.fill, windows, self.mirrors(), plan.batch, device)
        corners = np.clip(found.corners / np.tile(_zoom(sample), 2), 0, np.tile(sample.shape, 2))
        solid = (corners[:, 3:] > corners[:, :3]).all(1)
        return replace(found, corners=corners).take(np.flatnonzero(solid)[: self.task.boxes_per_scan])

    def record(self, case: Case, sample: Sample[Boxes], prediction: Boxes) -> Record:
        """Scores, classes and hits of the boxes (see `metrics.froc`); the case's score is its own AP at IoU 0.1 over
        all classes, or how sure of a finding it was where there is none."""
        assert sample.truth is not None
        truth, scores, bits = sample.truth, prediction.surety, hit_bits(prediction, sample.truth)
        truths = np.bincount(truth.labels, minlength=len(self.spec.classes)).tolist()
        labels = prediction.labels.tolist()
        detail: Record = {"scores": scores.tolist(), "labels": labels, "hits": bits, "truths": truths}
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

    def columns(self) -> list[str]:
        """The boxes."""
        return ["boxes"]

    def write(
        self, members: Sequence[TaskModel], sample: Sample[Boxes], device: torch.device, files: OutputFiles
    ) -> TableRow:
        """The boxes, and the name of a file of them where a format suits the scan."""
        found = self.predict(members, sample, device)
        row: TableRow = {"boxes": as_json(found, files.scan, self.spec.classes)}
        if not files.takes(BOXES, found):
            return row
        return {"report": files.put(BOXES, found) if len(found) else None} | row

    @classmethod
    def charts(
        cls, shown: list[Record], by_arm: Mapping[str, list[Record]], classes: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Precision over recall, and FROC."""
        from scanfoundry.finetune.drawing import charts  # prediction needs no matplotlib

        return [
            ("Precision and recall of all boxes, IoU 0.1.", charts.precision_recall(by_arm, "0.1")),
            ("FROC, IoU 0.1.", charts.froc(by_arm, 0.1, classes)),
        ]

    @staticmethod
    def draw(axes: Any, picture: Picture, n_classes: int) -> None:
        """Boxes."""
        from scanfoundry.finetune.drawing import overlays

        overlays.boxes(axes, picture, n_classes)

    @property
    def in_windows(self) -> bool:
        """As planned from the size of the findings."""
        return not self.whole

    def array_names(self, count: int) -> list[str]:
        """The logits of every level, then the box regression of every level."""
        return [f"{part}_{level}" for part in ("class_logits", "box_regression") for level in range(count // 2)]

    def export_steps(self) -> str:
        """Decoding, which `export_details` describes."""
        return (
            "Decode the boxes as `detection` says; they are in voxels of the patch"
            + ("." if self.whole else ", which is one of the windows (overlap as given, evenly spread).")
            + " How scanfoundry joins the boxes of several windows, mirrorings and models is left out here."
        )

    def export_details(self, model: TaskModel, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Anchors, and the rule that turns outputs into boxes."""
        assert isinstance(model, DetectionModel)
        return {"detection": decoding_rule(model, self.spec.plan.patch, shapes)}

    def picture(self, sample: Sample[Boxes], prediction: Boxes) -> Picture:
        """The image and all boxes; a volume is seen in the slice through its first true or best box."""
        assert sample.truth is not None
        truth, zoom = sample.truth.corners, _zoom(sample)
        first = next(iter([*truth, *prediction.corners]), np.array([0.0, 0, 0, *sample.shape]))
        index = int(np.clip((first[0] + first[3]) / 2, 0, sample.shape[0] - 1) * zoom[0])
        image = sample.image[0, min(index, sample.image.shape[1] - 1)].numpy()
        return {
            "image": image.astype(np.float16),
            "truth": in_plane(sample.truth.scaled(zoom).corners),
            "boxes": in_plane(prediction.scaled(zoom).corners),
            "scores": prediction.surety,
        }


def _zoom(sample: Sample[Any]) -> npt.NDArray[np.float64]:
    return np.array(sample.image.shape[1:]) / np.array(sample.shape)
