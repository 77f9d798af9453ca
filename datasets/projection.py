"""A volume's projection: its mean or maximum along an axis, as an X-ray of the crop."""

from dataclasses import replace
from typing import Literal

import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.crop import mix
from scanfoundry.datasets.plan import PROJECTED

How = Literal["mean", "max"]
_SALT = 0x9A0E
_FLAT = 1e-5  # deviation below which a projection is flat: it becomes 0


def axis_of(step: int) -> int:
    """The axis (0, 1, 2 = D, H, W) that the batches of a step are projected along: the same on all ranks."""
    return mix(step, _SALT) % 3


@torch.no_grad()
def project(batch: Batch, axis: int | None = None, how: How = "mean") -> Batch:
    """The projections of a batch of volumes along one axis, as a batch of images.

    The other two axes are rows and columns of the image, in their order and direction: (D, H, W) becomes (1, H, W),
    (1, D, W) or (1, D, H). Only valid voxels count, and a pixel is valid where its line has a valid voxel. Each sample
    is standardised over its valid pixels, all channels together (mean 0, deviation 1; 0 where it is flat); the other
    pixels get its darkest value. Seeds are new ones, so that augmentation is drawn anew. The modality is 'xr'.

    Args:
        batch: of volumes.
        axis: 0, 1, 2 for D, H, W; None: the axis of the batch's step.
        how: 'mean' or 'max' along the axis.

    Raises:
        UserError: the batch is one of images.
    """
    if batch.is_2d:
        raise UserError("images have no projection: unset data.crop_2d, or take other data.positives")
    line = 2 + (axis_of(batch.step) if axis is None else axis)
    valid = batch.valid.any(line, keepdim=True)
    pixels = _image(_along(batch.voxels.to(torch.float32), batch.valid, line, how), line)
    valid = _image(valid, line)
    return replace(
        batch,
        voxels=_standardised(pixels, valid),
        valid=valid,
        seeds=torch.tensor([mix(seed, _SALT) >> 1 for seed in batch.seeds.tolist()]).to(batch.seeds),
        modalities=[PROJECTED] * len(batch),
        labels=None,
    )


def _along(voxels: torch.Tensor, valid: torch.Tensor, line: int, how: How) -> torch.Tensor:
    """(B, C, ...) with one voxel along `line`; anything where none of the line is valid."""
    if how == "max":
        return torch.where(valid, voxels, -torch.inf).amax(line, keepdim=True)
    total = torch.where(valid, voxels, 0.0).sum(line, keepdim=True)
    return total / valid.sum(line, keepdim=True).clamp(min=1)


def _image(volume: torch.Tensor, line: int) -> torch.Tensor:
    """(B, C, D, H, W) of one voxel along `line` as (B, C, 1, rows, columns)."""
    return volume.squeeze(line).unsqueeze(2)


def _standardised(pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    every = (1, 2, 3, 4)
    count = (valid.sum(every, keepdim=True) * pixels.shape[1]).clamp(min=1)
    centred = torch.where(valid, pixels, 0.0)
    centred = torch.where(valid, centred - centred.sum(every, keepdim=True) / count, 0.0)
    deviation = (centred.square().sum(every, keepdim=True) / count).sqrt()
    scaled = torch.where(deviation > _FLAT, centred / deviation.clamp(min=_FLAT), 0.0)
    return torch.where(valid, scaled, torch.where(valid, scaled, 0.0).amin(every, keepdim=True))
