"""Whole scans through detectors: windows, mirrorings and members, clustered to one set of boxes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from scanfoundry.datasets.augment.window import PatchWindow, boxes_at_scan, extract
from scanfoundry.finetune.boxes.geometry import mirrored
from scanfoundry.finetune.boxes.network import Found, of_network
from scanfoundry.finetune.boxes.wbc import Views, cluster
from scanfoundry.finetune.boxes.windows import looked_at, trust
from scanfoundry.finetune.cases.boxes import Boxes

# Measured on blood cells in windows, AP at IoU 0.5: 0.33 at 0.1, 0.50 at 0.3, 0.56 from 0.4 to 0.6, 0.53 at 0.7, and
# 0.51 for plain suppression. Low values draw neighbours together, high ones leave one finding in pieces.
CLUSTER_IOU = 0.4
PER_PASS = 1000  # boxes of highest score that a member keeps of a mirroring: clustering takes the square of the time

Detector = Callable[[Tensor], list[Found]]  # images -> what is found in each


@torch.inference_mode()
def find(
    members: Sequence[Detector],
    image: Tensor,
    fill: float,
    windows: Sequence[PatchWindow],
    mirrors: Sequence[tuple[int, ...]],
    batch: int,
    device: torch.device,
) -> Boxes:
    """Boxes of an image (C, D, H, W), at its grid, best first; `fill` is what lies outside it.

    Each member sees each window in each mirroring; every such view has a vote on the places it looks at (`cluster`).
    `batch` windows at a time, and PER_PASS boxes of each pass: memory does not grow with the scan.
    """
    passes: dict[tuple[int, int], Views] = {}
    for start in range(0, len(windows), batch):
        some = windows[start : start + batch]
        patches = torch.stack([extract(image, window, fill) for window in some]).to(device)
        for m, member in enumerate(members):
            for f, axes in enumerate(mirrors):
                found = member(patches.flip([axis + 2 for axis in axes]))
                views = []
                for i, (window, one) in enumerate(zip(some, found, strict=True)):
                    view = ((start + i) * len(members) + m) * len(mirrors) + f
                    views.append(_view(one, window, axes, view))
                known = [passes[m, f]] if (m, f) in passes else []
                passes[m, f] = _best(Views.joined([*known, *views]))
    every = Views.joined(list(passes.values()))
    expected = looked_at(every.boxes.corners, windows) * len(members) * len(mirrors)
    return cluster(replace(every, expected=expected), CLUSTER_IOU)


def _best(views: Views) -> Views:
    return views.take(np.argsort(-views.boxes.surety, kind="stable")[:PER_PASS])


def _view(found: Found, window: PatchWindow, axes: tuple[int, ...], view: int) -> Views:
    """One image's boxes, turned back and put where they stand in the scan."""
    boxes = of_network(found)
    corners = boxes_at_scan(mirrored(boxes.corners, axes, window.size), window)
    n = np.ones(len(boxes))
    return Views(replace(boxes, corners=corners), (n * view).astype(np.int64), trust(corners, window), n)
