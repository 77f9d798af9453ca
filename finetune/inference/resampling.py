"""Class scores from the plan's grid to the file's, plane by plane: what `volumes.resize` does, without the volume."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from scanfoundry.finetune.inference.slab import PIECE, Place


def smoothing(source: Place, target: Place) -> npt.NDArray[np.float64]:
    """Sigma of each axis, in source voxels, that scores are smoothed by before they shrink; zeros where they do not."""
    sigma = np.maximum(0.0, (np.array(source) / np.array(target) - 1) / 2)
    return sigma if (sigma > 0.1).any() else np.zeros(3)


def blur_matrix(size: int, sigma: float) -> Tensor:
    """(size, size): multiplied from the left, it smooths an axis as scipy's Gaussian filter does, ends included."""
    eye = np.eye(size, dtype=np.float32)
    return torch.from_numpy(gaussian_filter1d(eye, sigma, axis=0) if sigma > 0 else eye)


def line_weights(place: int, source: int, target: int, sigma: float) -> tuple[int, Tensor]:
    """How one plane of a resampled grid is made of source planes: smoothed, then linear between centres.

    Both grids cover the same extent: the centre of voxel i lies at (i + 1/2) / n of it. Nothing here is as long as the
    axis, but for the ends that scipy reflects at.

    Args:
        place: of the plane in `target`.
        source, target: lengths of the axis.
        sigma: of the smoothing, in source voxels.

    Returns:
        The first source plane, and the weights from it on.
    """
    at = max(0.0, (place + 0.5) * source / target - 0.5)
    below, above, part = int(at), min(int(at) + 1, source - 1), at - int(at)
    reach = 2 * int(4 * sigma + 0.5)  # twice the filter's: its rows of these planes are then free of a false end
    low, high = max(0, below - reach), min(source, above + reach + 1)
    blur = blur_matrix(high - low, sigma)
    return low, (1 - part) * blur[below - low] + part * blur[above - low]


class PlaneResampler:
    """Takes the planes (M, K, n, A, B) of a stack in order, gives those of another grid over the same extent.

    It keeps the planes that a later one still needs: two, and a few more where scores are smoothed.
    """

    def __init__(self, source: Place, target: Place) -> None:
        self.target, self.same = target, source == target
        sigma = smoothing(source, target)
        self.rows = [line_weights(place, source[0], target[0], sigma[0]) for place in range(target[0])]
        self.blurs = [blur_matrix(n, s) if s > 0 else None for n, s in zip(source[1:], sigma[1:], strict=True)]
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
            low, rows = self._matrix(ready)
            part = self.held[:, :, low - self.first : low - self.first + rows.shape[1]]
            self.next += ready
            yield self._across(torch.einsum("op,mkpab->mkoab", rows.to(planes.device), part))
        kept = self.rows[self.next][0] if self.next < self.target[0] else self.first + self.held.shape[2]
        self.held = self.held[:, :, kept - self.first :].clone()
        self.first = kept

    def _ready(self, fed: int, at_most: int) -> int:
        """How many planes can be made now."""
        count = 0
        for low, weights in self.rows[self.next : self.next + at_most]:
            if low + len(weights) > fed:
                break
            count += 1
        return count

    def _matrix(self, count: int) -> tuple[int, Tensor]:
        """The first plane that the next `count` are made of, and their weights (count, planes) from it on."""
        rows = self.rows[self.next : self.next + count]
        low, high = rows[0][0], max(first + len(weights) for first, weights in rows)
        matrix = torch.zeros(count, high - low)
        for row, (first, weights) in zip(matrix, rows, strict=True):
            row[first - low : first - low + len(weights)] = weights
        return low, matrix

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
