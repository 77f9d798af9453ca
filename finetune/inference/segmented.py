"""A scan segmented by one network or several, at the file's grid, finished slab by slab."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.finetune.inference.resampling import PlaneResampler
from scanfoundry.finetune.inference.uncertainty import DISAGREEMENT, ENTROPY, disagreement, entropy
from scanfoundry.finetune.inference.windows import Network, Tiling, permuted, stream_order, stream_scores

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class SegmentationRequest:
    """What a segmentation is asked for beside its labels.

    Attributes:
        probabilities: whether those of background and classes are.
        uncertainty: whether its maps are.
        spots: (n, 3) voxels whose probabilities are.
        store: a folder for arrays too large for memory.
    """

    probabilities: bool = False
    uncertainty: bool = False
    spots: npt.NDArray[np.int_] | None = None  # (N, 3) voxels whose probabilities will do
    store: Path | None = None

    @property
    def each_probability(self) -> bool:
        """Whether finished planes come with their probabilities."""
        return self.probabilities or self.spots is not None


@dataclass
class Segmented:
    """A segmentation at the file's grid.

    Attributes:
        labels: (D, H, W).
        probabilities: (1 + classes, D, H, W), of background and classes.
        maps: 'uncertainty', of several members also 'disagreement' (see `uncertainty`), (D, H, W) from 0 to 1.
        spots: (n, 3) voxels that were asked for.
        at_spots: (n, 1 + classes) their probabilities.
    """

    labels: npt.NDArray[np.uint8]  # (D, H, W)
    probabilities: Half | None = None  # (K, D, H, W)
    maps: dict[str, Half] = field(default_factory=dict)  # (D, H, W) each
    spots: npt.NDArray[np.int_] | None = None  # (N, 3) as `SegmentationRequest.spots`
    at_spots: npt.NDArray[np.float32] | None = None  # (N, K) their probabilities


class Finished(NamedTuple):
    """Some planes of a segmentation."""

    where: tuple[slice, slice, slice]  # in (D, H, W)
    labels: Tensor  # uint8, as `where` says
    probabilities: Tensor | None  # K . . .
    maps: dict[str, Tensor]


def segment_volume(
    members: Sequence[Network],
    image: Tensor,
    fill: float,
    shape: Size3D,
    tiling: Tiling,
    device: torch.device,
    temperature: float = 1.0,
    wanted: SegmentationRequest | None = None,
) -> Segmented:
    """Labels and what else is wanted of `finished_slabs`, collected. Beside the image only these are of its size.

    Args:
        members: networks that predict together.
        image: (C, D, H, W) at the plan's grid.
        fill: the value outside it.
        shape: (D, H, W) of the file.
        tiling: how the image is cut.
        device: where the networks are.
        temperature: of the probabilities.
        wanted: beside the labels.
    """
    wanted = wanted or SegmentationRequest()
    spots = wanted.spots
    result = Segmented(np.zeros(shape, np.uint8), spots=spots)
    for slab in finished_slabs(members, image, fill, shape, tiling, device, temperature, wanted):
        result.labels[slab.where] = slab.labels.cpu().numpy()
        if spots is not None and slab.probabilities is not None:
            if result.at_spots is None:
                result.at_spots = np.zeros((len(spots), len(slab.probabilities)), np.float32)
            first, past = (np.array(ends) for ends in zip(*((s.start, s.stop) for s in slab.where), strict=True))
            here = ((spots >= first) & (spots < past)).all(1)
            result.at_spots[here] = slab.probabilities.cpu().numpy()[:, *(spots[here] - first).T].T
        if wanted.probabilities and slab.probabilities is not None:
            if result.probabilities is None:
                full = (len(slab.probabilities), *shape)
                result.probabilities = _array(full, wanted.store, "probabilities")
            result.probabilities[:, *slab.where] = slab.probabilities.cpu().numpy()
        for name, part in slab.maps.items():
            if name not in result.maps:
                result.maps[name] = _array(shape, wanted.store, name)
            result.maps[name][slab.where] = part.cpu().numpy()
    return result


@torch.inference_mode()
def finished_slabs(
    members: Sequence[Network],
    image: Tensor,
    fill: float,
    shape: Size3D,
    tiling: Tiling,
    device: torch.device,
    temperature: float,
    wanted: SegmentationRequest,
) -> Iterator[Finished]:
    """Planes of the file's grid, a few at a time. Logits are resampled, then joined (see `_joined`).

    Args:
        members: networks that predict together.
        image: (C, D, H, W) at the plan's grid.
        fill: the value outside it.
        shape: (D, H, W) of the file.
        tiling: how the image is cut.
        device: where the networks are.
        temperature: of the probabilities.
        wanted: beside the labels.

    Raises:
        UserError: a network gives values that are no numbers.
    """
    d, h, w = image.shape[1:]
    order = stream_order((d, h, w), tiling.patch)
    back = [order.index(a) for a in range(3)]
    resampler = PlaneResampler(permuted((d, h, w), order), permuted(shape, order))
    start = 0
    for planes in stream_scores(members, image, fill, tiling, device):
        if not all(torch.isfinite(end) for end in planes.aminmax()):  # NaN is both the least and the largest
            raise UserError("the model gives values that are no numbers (NaN): its weights or this scan are damaged")
        for logits in resampler.feed(planes):
            stop = start + logits.shape[2]
            where = [slice(0, n) for n in shape]
            where[order[0]] = slice(start, stop)
            scores = logits.permute(0, 1, *(2 + a for a in back))
            yield _joined(scores, (where[0], where[1], where[2]), temperature, wanted)
            start = stop


def _joined(
    logits: Tensor, where: tuple[slice, slice, slice], temperature: float, wanted: SegmentationRequest
) -> Finished:
    """Members' logits (M, K, . . .) to labels: the largest mean of the probabilities (of one member: of the logits).

    Probabilities are averaged, not logits: the mean is then a distribution whose entropy divides into what each member
    is unsure of and what they disagree on, and one member that is sure of the wrong class cannot overrule the rest.
    """
    single = len(logits) == 1
    if single and not (wanted.each_probability or wanted.uncertainty):
        return Finished(where, _largest(logits[0]), None, {})
    each = (logits / temperature).softmax(1)
    mean = each.mean(0)
    labels = _largest(logits[0] if single else mean)
    maps = {ENTROPY: entropy(mean, 0)} if wanted.uncertainty else {}
    if wanted.uncertainty and not single:
        maps[DISAGREEMENT] = disagreement(each)
    return Finished(where, labels, mean if wanted.each_probability else None, maps)


def _largest(scores: Tensor) -> Tensor:
    """Class of the largest of (K, . . .), the first of equal ones; on a CPU ten times as fast as torch's argmax."""
    labels, best = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device), scores[0]
    for number, score in enumerate(scores[1:], 1):
        labels.masked_fill_(score > best, number)
        best = torch.maximum(best, score)
    return labels


def _array(shape: Sequence[int], store: Path | None, name: str) -> Half:
    if store is None:
        return np.zeros(shape, np.float16)
    return np.memmap(store / f"{name}.f16", np.float16, "w+", shape=tuple(shape))
