"""MONAI's RetinaNet over a feature pyramid; 2D scans lose their depth axis on the way in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.geometry import Size3D
from scanfoundry.finetune.boxes.anchors import Anchors
from scanfoundry.finetune.config.detection import LEAST_SAMPLED
from scanfoundry.finetune.heads.bfloat16 import columns_fail, gradients_fail
from scanfoundry.finetune.heads.pyramid import Pyramid
from scanfoundry.finetune.monai_parts import (
    AnchorGeneratorWithAnchorShape,
    BoxGIoULoss,
    RetinaNet,
    RetinaNetDetector,
)
from scanfoundry.finetune.task import TaskModel

PYRAMID = "detector.network.feature_extractor."  # what the names of its weights begin with
NMS_IOU = 0.3  # boxes of one view that overlap more are one finding
ATSS_CANDIDATES = 4
POSITIVE_SHARE, LEAST_NEGATIVES, POOL = 0.33, 8, 20  # of the anchors of an image that the loss looks at


class DetectionModel(TaskModel):
    """RetinaNet (Lin et al. 2017) with ATSS matching (Zhang et al. 2020), hard negatives and GIoU.

    Heads of MONAI: GroupNorm, and a classification bias that starts at a probability of 0.01.
    """

    def __init__(
        self,
        encoder: Encoder,
        n_classes: int,
        is_2d: bool,
        strides: Sequence[Size3D],
        anchors: Anchors,
        score_threshold: float,
        boxes_per_view: int,
        sampled: int = LEAST_SAMPLED,
    ) -> None:
        super().__init__()
        axes = 2 if is_2d else 3
        generator = AnchorGeneratorWithAnchorShape((1,) * len(anchors), anchors[0])
        halves = [torch.tensor(level) / 2 for level in anchors]  # MONAI's own way rounds: 5 voxels would become 4
        generator.cell_anchors = [torch.cat([-half, half], dim=1) for half in halves]
        divisor = encoder.size_divisor(is_2d)[3 - axes :]
        network = _Network(axes, n_classes, len(anchors[0]), Pyramid(encoder, is_2d, strides), divisor)
        self.is_2d = is_2d
        self.strides = [*encoder.feature_strides(is_2d), *strides]
        self.detector = RetinaNetDetector(network, generator)
        self.detector.set_atss_matcher(num_candidates=ATSS_CANDIDATES, center_in_gt=False)
        self.detector.set_hard_negative_sampler(sampled, POSITIVE_SHARE, LEAST_NEGATIVES, POOL)
        self.detector.set_box_regression_loss(BoxGIoULoss(reduction="mean"), encode_gt=False, decode_pred=True)
        self.detector.set_box_selector_parameters(score_threshold, 1000, NMS_IOU, boxes_per_view)

    def losses(self, images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """images (B, C, D, H, W); per image boxes (N, 2A) and labels (N,), none allowed -> classification + GIoU."""
        targets = [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)]
        half = torch.is_autocast_enabled(images.device.type)
        depth, width = images.shape[2], images.shape[4]
        unsafe = images.device.type == "cpu" and (
            gradients_fail(depth, self.strides) or columns_fail(width, self.strides)
        )
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half and not unsafe):
            parts = self.detector(images.squeeze(2) if self.is_2d else images, targets)
        total = parts[self.detector.cls_key]
        # Without any box in the batch MONAI gives a constant on the CPU for this part.
        return total + parts[self.detector.box_reg_key].to(total.device)

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """images (B, C, D, H, W) -> of each image corners (N, 2A), scores and labels (N,), best first, after
        non-maximum suppression of each class; evaluation mode only."""
        found = self.detector(images.squeeze(2) if self.is_2d else images)
        return [(result["boxes"], result["labels_scores"], result["labels"]) for result in found]

    def part_of(self, name: str) -> tuple[Part, str]:
        """Encoder; the pyramid is the decoder; what finds boxes on it is the head."""
        if name.startswith(f"{PYRAMID}encoder."):
            return "encoder", name.removeprefix(f"{PYRAMID}encoder.")
        return ("decoder" if name.startswith(PYRAMID) else "head"), name


class _Network(RetinaNet):
    """Hands over float32: MONAI makes the anchors in the type of the maps, and bfloat16 holds 129.5 as 130."""

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        return {name: [level.float() for level in levels] for name, levels in super().forward(images).items()}
