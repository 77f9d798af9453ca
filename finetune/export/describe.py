"""What an export is, as JSON: enough to run it without scanfoundry, in numbers for programs and in words for people."""

from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.volumes import SPACING_TOLERANCE
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.export.network import INPUT, Traceable
from scanfoundry.finetune.heads.detection import DetectionModel
from scanfoundry.finetune.task import Adapter, Spec, TaskModel

AXES = (
    "Arrays are (channel, D, H, W), voxels in the file's own order and orientation: of a NIfTI array (x, y, z) D, H, W "
    "are z, y, x (its transpose); of an image H is down, W to the right and D one slice. Nothing is reoriented."
)
MEANINGS = {
    "segmentation": "logits of each class and voxel; the largest is the label, 0 the background",
    "classification": "logits of each class; their softmax are the probabilities at temperature 1",
    "regression": "the value in the unit of the training cases",
}


def describe(adapter: Adapter[Any, Any], model: TaskModel, traced: Traceable, file: str) -> dict[str, Any]:
    """The description of an exported network in `file`, which `standalone` reads."""
    spec, task = adapter.spec, adapter.spec.task.name
    channels = list(spec.channels)
    modalities = list(spec.modalities or []) or [spec.modality] * len(channels)
    by_spacing = _by_spacing(spec)
    about: dict[str, Any] = {
        "format_version": 1,
        "task": task,
        "classes": named_outputs(spec),
        "channels": channels,
        "modalities": modalities,
        "in_channels": spec.backbone.in_channels,
        "axes": AXES,
        "intensity": spec.intensity.model_dump(mode="json"),
        "grid": "spacing" if by_spacing else "fit",
        "spacing": list(spec.plan.spacing),
        "patch": list(spec.plan.patch),
        "overlap": spec.inference.overlap,
        "mirrors": [list(axes) for axes in adapter.mirrors()],
        "temperature": spec.temperature,
        "postprocess": [rule.model_dump() for rule in spec.postprocess],
        "values": spec.labels.written if task == "segmentation" else [],
        "network": _network(file, traced, task),
        "steps": _steps(task, len(channels), by_spacing),
    }
    if isinstance(model, DetectionModel):
        about["detection"] = _detection(model, traced)
    return about


def named_outputs(spec: Spec) -> list[str]:
    """What each channel of the output is of: classes, of a segmentation after the background; the value's name."""
    if isinstance(spec.task, RegressionTask):
        return [spec.task.label_column]
    return (["background"] if spec.task.name == "segmentation" else []) + spec.classes


def _network(file: str, traced: Traceable, task: str) -> dict[str, Any]:
    shape = ["batch", *traced.example.shape[1:]]
    outputs = [
        {"name": name, "shape": ["batch", *sizes], "meaning": MEANINGS.get(task, name.rpartition("_")[0])}
        for name, sizes in zip(traced.names, traced.shapes, strict=True)
    ]
    return {
        "file": file,
        "input": {"name": INPUT, "shape": shape, "dtype": "float32"},
        "outputs": outputs,
        "sizes": "any batch; channels, D, H and W are fixed to the patch",
    }


def _by_spacing(spec: Spec) -> bool:
    """Whether scans are brought to the plan's spacing and seen through windows; otherwise they go in whole."""
    planned = spec.detection
    return spec.task.name == "segmentation" or (planned is not None and not planned.whole_scan)


def _steps(task: str, channels: int, by_spacing: bool) -> list[str]:
    several = (
        "Channels lie on one grid; a missing one is filled with the mean of the others' outside values."
        if channels > 1
        else "One file; colours are averaged where the network takes one channel."
    )
    grid = (
        "Resize to `spacing` (mm of D, H, W) where any axis differs from it by more than "
        f"{SPACING_TOLERANCE:.0%}: linear between voxel centres, smoothed first by a Gaussian of (shrinkage - 1) / 2."
        if by_spacing
        else "Scale evenly (in mm) until the scan just fits into the patch: linear between voxel centres, smoothed "
        "first by a Gaussian of (shrinkage - 1) / 2 where it shrinks; put it in the middle of the patch."
    )
    windows = {
        "segmentation": "Cover it with windows of the patch's size (overlap as given, evenly spread); average their "
        "logits with Gaussian weights of sigma patch / 8 and over `mirrors` (axes flipped together); resize the "
        "logits back to the file's grid, take the largest, and set to 0 what `postprocess` removes of each class: "
        "components (26 neighbours) below `min_mm3`, or all but the `largest`. "
        "Class k is written as the k-th of `values`.",
        "classification": "Average the probabilities over `mirrors` (axes flipped together), take them to the power of "
        "1 / `temperature`, and divide by their sum.",
        "regression": "Average the value over `mirrors` (axes flipped together).",
        "detection": "Decode the boxes as `detection` says; they are in voxels of the patch"
        + (", which is one of the windows (overlap as given, evenly spread)." if by_spacing else ".")
        + " How scanfoundry joins the boxes of several windows, mirrorings and models is left out here.",
    }
    return [
        several,
        "Intensity: modality 'ct' is clipped to `ct_window` (HU) and scaled to -1..1; any other one is clipped to its "
        "`percentiles` and z-scored by the mean and standard deviation of its foreground (preprocessing.py, "
        "`statistics`). Outside the scan is the value of its darkest kept intensity.",
        grid,
        windows[task],
        "preprocessing.py does all of this in numpy and scipy.",
    ]


def _detection(model: DetectionModel, traced: Traceable) -> dict[str, Any]:
    """Anchors and the rule that turns outputs into boxes, from the detector itself."""
    detector = model.detector
    generator, selector = detector.anchor_generator, detector.box_selector
    axes = 2 if model.is_2d else 3
    patch = traced.example.shape[-axes:]
    anchors = getattr(generator, "cell_anchors", None)
    if not anchors:
        raise UserError("this detector has no fixed anchors: it cannot be exported")
    levels = [
        {
            "map": sizes[1:],
            "stride": [p // n for p, n in zip(patch, sizes[1:], strict=True)],
            "anchors": [[round(float(v), 4) for v in corners] for corners in level],
        }
        for level, sizes in zip(anchors, traced.shapes, strict=False)
    ]
    return {
        "axes": ["H", "W"] if model.is_2d else ["D", "H", "W"],
        "levels": levels,
        "box_size_limit": float(detector.box_coder.boxes_xform_clip),
        "score_threshold": float(selector.score_thresh),
        "candidates_per_level": int(selector.topk_candidates_per_level),
        "nms_iou": float(selector.nms_thresh),
        "boxes_per_scan": int(selector.detections_per_img),
        "rule": [
            "`anchors` are corners (low of each axis, then high) about the cell; the cell i of a map lies at i * "
            "stride + stride // 2. n is the number of axes, A of anchors, K of classes.",
            "Channel a * K + k of class_logits is class k of anchor a; its score is the sigmoid.",
            "Channels a * 2n .. of box_regression are n shifts, then n sizes: centre = shift * anchor size + anchor "
            "centre, size = exp(min(size, box_size_limit)) * anchor size.",
            "On each level keep the candidates_per_level best scores above score_threshold; clip boxes to the patch; "
            "drop those under one voxel on any axis; drop by non-maximum suppression within a class at nms_iou; keep "
            "the boxes_per_scan best.",
        ],
    }
