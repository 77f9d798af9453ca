"""Which blocks of a scan are hidden, and scans as sequences of blocks.

Blocks are counted in d, h, w order (w fastest) everywhere: in the masks, in the patches and in the tokens. Masks and
what follows from them are made on the host, where their seeds are: how many blocks are visible must be known there.
"""

import torch
from torch import Tensor

from scanfoundry.configs.geometry import Size3D

_BITS = 2**64


def _scramble(seed: int) -> int:
    """splitmix64: torch's CPU generator keeps 32 bits of its seed, and the augmentation has used the plain one."""
    z = (seed + 0x9E3779B97F4A7C15) % _BITS
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _BITS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _BITS
    return (z ^ (z >> 31)) >> 1


def masked_count(blocks: int, ratio: float) -> int:
    """How many of the blocks are hidden: the nearest number to blocks * ratio, at least one hidden and one not."""
    if blocks < 2:
        raise ValueError("a mask needs at least two blocks: one to hide, one to see")
    return min(max(round(blocks * ratio), 1), blocks - 1)


def block_mask(seeds: Tensor, grid: Size3D, ratio: float | tuple[float, float]) -> Tensor:
    """Random masks (B, 1, d, h, w) bool on the CPU, True where hidden.

    A sample's mask is a function of its own seed alone, so it is the same at any world size and after any resume, and
    no global random state is read or moved.

    Args:
        seeds: (B,) int64.
        grid: blocks (d, h, w) of a sample.
        ratio: the share hidden, the same number of blocks in every sample; or (low, high), between which each sample's
            share is drawn.
    """
    blocks = grid[0] * grid[1] * grid[2]
    mask = torch.zeros(len(seeds), blocks, dtype=torch.bool)
    generator = torch.Generator()
    for row, seed in zip(mask, seeds.tolist(), strict=True):
        generator.manual_seed(_scramble(seed))
        hidden = masked_count(blocks, _between(ratio, generator) if isinstance(ratio, tuple) else ratio)
        row[torch.randperm(blocks, generator=generator)[:hidden]] = True
    return mask.view(-1, 1, *grid)


def _between(bounds: tuple[float, float], generator: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def visible_indices(mask: Tensor) -> Tensor:
    """Indices (B, n) int64, ascending, of the visible blocks of masks (B, 1, d, h, w) with n visible in each."""
    flat = mask.flatten(1)
    visible = flat.shape[1] - int(flat[0].sum())
    return flat.to(torch.uint8).argsort(dim=1, stable=True)[:, :visible]


def enlarge(mask: Tensor, factor: Size3D) -> Tensor:
    """Each cell of (B, 1, d, h, w) repeated into `factor` cells: (B, 1, d*fd, h*fh, w*fw)."""
    for axis, repeats in enumerate(factor, start=2):
        if repeats > 1:
            mask = mask.repeat_interleave(repeats, dim=axis)
    return mask


def patchify(x: Tensor, patch: Size3D) -> Tensor:
    """(B, C, D, H, W) -> (B, L, V, C): L patches of V voxels each; the sizes are multiples of the patch."""
    b, c, d, h, w = x.shape
    pd, ph, pw = patch
    x = x.reshape(b, c, d // pd, pd, h // ph, ph, w // pw, pw)
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, -1, pd * ph * pw, c)


def unpatchify(patches: Tensor, grid: Size3D, patch: Size3D) -> Tensor:
    """(B, L, V, C) -> (B, C, D, H, W): the inverse of `patchify`."""
    b, c = patches.shape[0], patches.shape[-1]
    x = patches.reshape(b, *grid, *patch, c).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(b, c, *(n * p for n, p in zip(grid, patch, strict=True)))
