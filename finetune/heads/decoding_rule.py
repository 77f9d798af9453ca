"""How the outputs of an exported detector become boxes, as JSON."""

from collections.abc import Sequence
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.finetune.heads.detection import DetectionModel


def decoding_rule(model: DetectionModel, patch: Size3D, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Anchors and the rule that turns outputs into boxes, from the detector itself.

    Args:
        model: the detector.
        patch: (D, H, W) of the network's input.
        shapes: of the outputs for one image, (channels, ...) each.

    Raises:
        UserError: the detector has no fixed anchors.
    """
    detector = model.detector
    generator, selector = detector.anchor_generator, detector.box_selector
    axes = 2 if model.is_2d else 3
    size = patch[-axes:]
    anchors = getattr(generator, "cell_anchors", None)
    if not anchors:
        raise UserError("this detector has no fixed anchors: it cannot be exported")
    levels = [
        {
            "map": list(sizes[1:]),
            "stride": [p // n for p, n in zip(size, sizes[1:], strict=True)],
            "anchors": [[round(float(v), 4) for v in corners] for corners in level],
        }
        for level, sizes in zip(anchors, shapes, strict=False)
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
