"""Fixed sin-cos positions, factorised over the axes of any grid."""

from functools import lru_cache

import torch
from torch import Tensor

from scanfoundry.configs.geometry import Size3D


def axis_positions(length: int, pairs: int) -> Tensor:
    """(length, 2 * pairs) float64: [sin | cos] of position / 10000^(i / pairs), i = 0..pairs-1 (MAE)."""
    omega = 10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))
    angle = torch.outer(torch.arange(length, dtype=torch.float64), omega)
    return torch.cat((angle.sin(), angle.cos()), dim=1)


@lru_cache(maxsize=64)
def sincos_positions(grid: Size3D, dim: int, is_2d: bool) -> Tensor:
    """Positions (d*h*w, dim) float64 of a grid, rows in d, h, w order (w fastest).

    The columns go to the axes w, h in 2D and w, h, d in 3D, in that order (w first is what MAE's code does).
    The dim // 2 pairs of one sine and one cosine are shared out evenly; what is left over goes to w, then h;
    an odd dim ends with a column of zeros. In 2D with dim a multiple of 4 this is MAE's table exactly.
    """
    axes = (2, 1) if is_2d else (2, 1, 0)
    share, extra = divmod(dim // 2, len(axes))
    columns = []
    for order, axis in enumerate(axes):
        table = axis_positions(grid[axis], share + (order < extra))  # (n, 2 * pairs)
        shape = [1, 1, 1, table.shape[1]]
        shape[axis] = grid[axis]
        columns.append(table.view(shape).expand(*grid, -1))
    columns.append(torch.zeros(*grid, dim % 2, dtype=torch.float64))
    return torch.cat(columns, dim=-1).flatten(0, 2)


def positions_like(grid: Size3D, dim: int, is_2d: bool, like: Tensor) -> Tensor:
    """`sincos_positions` in the type and on the device of `like`, made once for each."""
    return _positions_on(grid, dim, is_2d, like.dtype, like.device)


@lru_cache(maxsize=64)
def _positions_on(grid: Size3D, dim: int, is_2d: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a table first asked for in a prediction serves training too
        return sincos_positions(grid, dim, is_2d).to(device, dtype)
