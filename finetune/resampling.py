"""Class scores from the plan's grid to the file's, plane by plane: what `volumes.resize` does, without the volume."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from scanforge.finetune.inference import PIECE, Place


def smoothing(source: Place, target: Place) -> npt.NDArray[np.float64]:
    """Sigma of each axis, in source voxels, that scores are smoothed by before they shrink; zeros where they do not."""
    sigma = np.maximum(0.0, (np.array(source) / np.array(target) - 1) / 2)
    return sigma if (sigma > 0.1).any() else np.zeros(3)


def blur_matrix(size: int, sigma: float) -> Tensor:
    """(size, size): multiplied from the left, it smooths an axis as scipy's Gaussian filter does, ends included."""
    eye = np.eye(size, dtype=np.float32)
    return torch.from_numpy(gaussian_filter1d(eye, sigma, axis=0) if sigma > 0 else eye)


def line_matrix(source: int, target: int, sigma: float) -> Tensor:
    """(target, source): each plane's weights of the planes it comes from, smoothed, then linear between centres.

    Both grids cover the same extent: the centre of voxel i lies at (i + 1/2) / n of it.
    """
    columns = blur_matrix(source, sigma).T[None]
    return F.interpolate(columns.contiguous(), size=target, mode="linear", align_corners=False)[0].T.contiguous()


class PlaneResampler:
    """Takes the planes (M, K, n, A, B) of a stack in order, gives those of another grid over the same extent.

    It keeps the planes that a later one still needs: two, and a few more where scores are smoothed.
    """

    def __init__(self, source: Place, target: Place) -> None:
        self.target, self.same = target, source == target
        sigma = smoothing(source, target)
        self.matrix = line_matrix(source[0], target[0], sigma[0])
        self.blurs = [blur_matrix(n, s) if s > 0 else None for n, s in zip(source[1:], sigma[1:], strict=True)]
        needed = [torch.nonzero(row).flatten() for row in self.matrix]
        self.needs = [(int(planes[0]), int(planes[-1]) + 1) for planes in needed]  # half-open
        self.held: Tensor | None = None
        self.first = 0  # number of the first plane held
        self.next = 0  # plane to make

    def feed(self, planes: Tensor) -> Iterator[Tensor]:
        """The planes (M, K, n', A', B') that these complete, in pieces; all of them after the last was fed."""
        if self.same:
            yield planes
            return
        self.held = planes if self.held is None else torch.cat((self.held, planes), 2)
        at_most = max(1, PIECE // (planes[:, :, 0, 0, 0].numel() * self.target[1] * self.target[2]))
        while ready := self._ready(self.first + self.held.shape[2], at_most):
            low, high = self.needs[self.next][0], self.needs[self.next + ready - 1][1]
            rows = self.matrix[self.next : self.next + ready, low:high].to(planes.device)
            part = self.held[:, :, low - self.first : high - self.first]
            self.next += ready
            yield self._across(torch.einsum("op,mkpab->mkoab", rows, part))
        unneeded = (self.needs[self.next][0] if self.next < self.target[0] else self.held.shape[2]) - self.first
        self.held = self.held[:, :, unneeded:].clone()
        self.first += unneeded

    def _ready(self, fed: int, at_most: int) -> int:
        """How many planes can be made now."""
        count = 0
        while count < at_most and self.next + count < self.target[0] and self.needs[self.next + count][1] <= fed:
            count += 1
        return count

    def _across(self, planes: Tensor) -> Tensor:
        """Within the planes: smoothed where asked, then bilinear."""
        over_a, over_b = (None if blur is None else blur.to(planes.device) for blur in self.blurs)
        if over_a is not None:
            planes = over_a @ planes
        if over_b is not None:
            planes = planes @ over_b.T
        if planes.shape[3:] == self.target[1:]:
            return planes
        flat = planes.flatten(0, 1).movedim(0, 1)  # n MK A B
        flat = F.interpolate(flat, size=self.target[1:], mode="bilinear", align_corners=False)
        return flat.movedim(1, 0).reshape(*planes.shape[:3], *self.target[1:])
