"""MONAI's RetinaNet on a feature pyramid over the encoder; 2D scans lose their depth axis on the way in."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from scanforge.backbones.protocol import Encoder, Triple
from scanforge.configs.errors import UserError
from scanforge.finetune.adapter import TaskModel
from scanforge.finetune.monai_parts import (
    AnchorGeneratorWithAnchorShape,
    BoxGIoULoss,
    RetinaNet,
    RetinaNetDetector,
    non_max_suppression,
)

WIDTH = 64
LEVELS, ANCHORS_PER_LEVEL = 3, 3
FINEST_STRIDE = 4  # findings are larger than a few voxels, and finer maps cost the most
ZOOMS = (0.5, 0.71, 1.0, 1.41, 2.0)  # few boxes stand for a wider range of sizes
SCORE_NMS = 0.3

Anchors = list[list[list[float]]]  # level, anchor, size (D, H, W) or (H, W)


def plan_anchors(sizes: npt.NDArray[np.float64]) -> Anchors:
    """Sizes (N, A) of the training boxes -> LEVELS x ANCHORS_PER_LEVEL anchor sizes, small ones at the fine level.

    k-means on the logarithms of the sizes, each box also zoomed by ZOOMS. UserError without any box.
    """
    if not len(sizes):
        raise UserError("none of the training cases has a box: raise 'shots' or take another seed")
    points = np.concatenate([np.log(sizes * zoom) for zoom in ZOOMS])
    points = points[np.lexsort(points.T)]
    n_anchors = LEVELS * ANCHORS_PER_LEVEL
    few = len(np.unique(points.round(6), axis=0))
    if few < n_anchors:
        points = np.concatenate([points + shift for shift in np.linspace(-0.3, 0.3, n_anchors)])
    centres = np.exp(KMeans(n_anchors, n_init=4, random_state=0).fit(points).cluster_centers_)
    ordered = np.maximum(centres[np.argsort(centres.prod(1))], 2.0).round(2)
    return ordered.reshape(LEVELS, ANCHORS_PER_LEVEL, -1).tolist()


def pyramid_levels(strides: Sequence[Triple]) -> list[int]:
    """Up to LEVELS encoder levels of distinct stride, from FINEST_STRIDE on where there are any."""
    distinct = [i for i, stride in enumerate(strides) if i + 1 == len(strides) or strides[i + 1] != stride]
    coarse = [i for i in distinct if max(strides[i]) >= FINEST_STRIDE] or distinct
    return coarse[:LEVELS]


class Pyramid(nn.Module):
    """Top-down feature pyramid (Lin et al. 2017) of LEVELS maps; missing coarse levels are strided from the last."""

    def __init__(self, encoder: Encoder, is_2d: bool) -> None:
        super().__init__()
        self.encoder, self.is_2d, self.out_channels = encoder, is_2d, WIDTH
        strides = encoder.feature_strides(is_2d)
        self.levels = pyramid_levels(strides)
        conv: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if is_2d else nn.Conv3d
        self.lateral = nn.ModuleList(conv(encoder.feature_channels[i], WIDTH, 1) for i in self.levels)
        self.smooth = nn.ModuleList(conv(WIDTH, WIDTH, 3, padding=1) for _ in self.levels)
        # A ViT has one coarse level: one step finer by interpolation, the rest coarser (ViTDet, Li et al. 2022).
        self.finer = len(self.levels) == 1 and min(strides[self.levels[0]][1:]) > FINEST_STRIDE
        missing = LEVELS - len(self.levels) - int(self.finer)
        self.refine = conv(WIDTH, WIDTH, 3, padding=1) if self.finer else None
        self.coarser = nn.ModuleList(conv(WIDTH, WIDTH, 3, stride=2, padding=1) for _ in range(missing))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) or (B, C, D, H, W) -> LEVELS maps of WIDTH channels, finest first."""
        features = self.encoder(x.unsqueeze(2) if self.is_2d else x)
        chosen = [features[i].squeeze(2) if self.is_2d else features[i] for i in self.levels]
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, chosen, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:], mode="nearest")
        out = [smooth(level) for smooth, level in zip(self.smooth, maps, strict=True)]
        if self.refine is not None:
            out.insert(0, self.refine(F.interpolate(maps[0], scale_factor=2, mode="nearest")))
        for step in self.coarser:
            out.append(step(F.relu(out[-1])))
        return out


class DetectionModel(TaskModel):
    """RetinaNet (Lin et al. 2017) with ATSS matching, hard negatives and GIoU, one class of finding."""

    def __init__(
        self, encoder: Encoder, anchors: Anchors, is_2d: bool, score_threshold: float, boxes_per_scan: int
    ) -> None:
        super().__init__()
        axes = 2 if is_2d else 3
        generator = AnchorGeneratorWithAnchorShape((1,) * LEVELS, anchors[0])
        generator.cell_anchors = [
            AnchorGeneratorWithAnchorShape.generate_anchors_using_shape(torch.tensor(level)) for level in anchors
        ]
        divisor = encoder.size_divisor(is_2d)[3 - axes :]
        network = RetinaNet(axes, 1, ANCHORS_PER_LEVEL, Pyramid(encoder, is_2d), divisor)
        self.is_2d = is_2d
        self.detector = RetinaNetDetector(network, generator)
        self.detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
        self.detector.set_hard_negative_sampler(32, positive_fraction=0.33, min_neg=8, pool_size=20)
        self.detector.set_box_regression_loss(BoxGIoULoss(reduction="mean"), encode_gt=False, decode_pred=True)
        self.detector.set_box_selector_parameters(score_threshold, 1000, SCORE_NMS, boxes_per_scan)

    def losses(self, images: Tensor, boxes: list[Tensor]) -> Tensor:
        """images (B, C, D, H, W), boxes per image (N, 2A), none allowed -> classification + GIoU loss."""
        targets = [{"boxes": b, "labels": torch.zeros(len(b), dtype=torch.long, device=b.device)} for b in boxes]
        parts = self.detector(images.squeeze(2) if self.is_2d else images, targets)
        total = parts[self.detector.cls_key]
        # Without any box in the batch MONAI gives a constant on the CPU for this part.
        return total + parts[self.detector.box_reg_key].to(total.device)

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """images (B, C, D, H, W) -> per image boxes (N, 2A) and scores (N,), best first; evaluation mode only."""
        found = self.detector(images.squeeze(2) if self.is_2d else images)
        return [(result["boxes"], result["labels_scores"]) for result in found]

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The encoder below the pyramid."""
        pyramid = cast(RetinaNet, self.detector.network).feature_extractor
        assert isinstance(pyramid, Pyramid)
        return pyramid.encoder.parameters()


def suppress(boxes: Tensor, scores: Tensor, limit: int) -> Tensor:
    """Indices kept by non-maximum suppression at SCORE_NMS, best first, `limit` at most."""
    if not len(boxes):
        return torch.zeros(0, dtype=torch.long)
    return torch.as_tensor(non_max_suppression(boxes, scores, SCORE_NMS, limit), dtype=torch.long)
