"""What an objective sees and makes of it, as one PNG: a row for a scan, a column for each picture of it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

SIDE = 256  # pixels of a tile's longer side
GAP = 4
HEADER = 18


def draw(shown: list[dict[str, torch.Tensor]], path: Path, rows: int = 4) -> None:
    """Write the middle slices of up to `rows` samples of each group of columns to `path`, names above each group.

    Columns (B, C, D, H, W) of a group whose names are the same up to a colon have the grey scale of the first of them.
    """
    groups = [(list(columns), _rows(columns, rows)) for columns in shown]
    width = max(sum(tile.width + GAP for tile in row) for _, tiles in groups for row in tiles)
    height = sum(HEADER + sum(_height(row) for row in tiles) for _, tiles in groups)
    sheet = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(sheet)
    top = 0
    for names, tiles in groups:
        left = 0
        for name, tile in zip(names, tiles[0], strict=True):
            pen.text((left + 2, top + 3), name, fill=255)
            left += tile.width + GAP
        top += HEADER
        for row in tiles:
            left = 0
            for tile in row:
                sheet.paste(tile, (left, top))
                left += tile.width + GAP
            top += _height(row)
    temporary = path.with_suffix(".tmp.png")
    sheet.save(temporary)
    temporary.replace(path)


def _height(row: list[Image.Image]) -> int:
    return max(tile.height for tile in row) + GAP


def _rows(columns: dict[str, torch.Tensor], rows: int) -> list[list[Image.Image]]:
    count = min(rows, *(len(column) for column in columns.values()))
    drawn = []
    for sample in range(count):
        scales: dict[str, tuple[float, float]] = {}
        row = []
        for name, column in columns.items():
            plane = column[sample, 0, column.shape[2] // 2].float()
            scale = scales.setdefault(name.split(":")[0], (float(plane.min()), float(plane.max())))
            row.append(_tile(plane, *scale))
        drawn.append(row)
    return drawn


def _tile(plane: torch.Tensor, low: float, high: float) -> Image.Image:
    grey = (plane.cpu().numpy() - low) / max(high - low, 1e-6)
    image = Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8))
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BILINEAR)
