"""What a masked objective sees and makes of it, as one PNG: a row a scan, target | visible | reconstruction."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from scanforge.pretrain.objectives import Reconstruction

COLUMNS = ("target", "visible", "reconstruction")
SIDE = 256  # pixels of a tile's longer side
HEADER = 18


def draw(reconstructions: "list[Reconstruction]", path: Path, rows: int = 4) -> None:
    """Write the middle slices of up to `rows` samples of each reconstruction to `path`.

    The last column keeps the visible voxels and shows the prediction where the mask was.
    """
    tiles = [row for one in reconstructions for row in _rows(one, rows)]
    width = max(sum(tile.width for tile in row) + 4 * (len(row) - 1) for row in tiles)
    height = HEADER + sum(max(tile.height for tile in row) + 4 for row in tiles)
    sheet = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(sheet)
    left = 0
    for name, tile in zip(COLUMNS, tiles[0], strict=True):
        pen.text((left + 2, 3), name, fill=255)
        left += tile.width + 4
    top = HEADER
    for row in tiles:
        left = 0
        for tile in row:
            sheet.paste(tile, (left, top))
            left += tile.width + 4
        top += max(tile.height for tile in row) + 4
    temporary = path.with_suffix(".tmp.png")
    sheet.save(temporary)
    temporary.replace(path)


def _rows(one: "Reconstruction", rows: int) -> list[list[Image.Image]]:
    middle = one.target.shape[2] // 2
    drawn = []
    for i in range(min(rows, one.target.shape[0])):
        target = one.target[i, 0, middle].float()
        mask = one.mask[i, 0, middle].bool()
        filled = torch.where(mask, one.prediction[i, 0, middle].float(), target)
        low, high = target.min(), target.max()
        visible = torch.where(mask, low + 0.5 * (high - low), target)
        drawn.append([_tile(plane, float(low), float(high)) for plane in (target, visible, filled)])
    return drawn


def _tile(plane: torch.Tensor, low: float, high: float) -> Image.Image:
    grey = (plane.cpu().numpy() - low) / max(high - low, 1e-6)
    image = Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8))
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BILINEAR)
