"""One picture of a data set: the middle slices of up to 64 scans, so that a person sees what was built."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scanfoundry.datasets.shards.format import SampleEntry
from scanfoundry.datasets.shards.reader import DataSet, ShardReader

_SCANS = 64
_TILE, _GAP, _CAPTION = 192, 8, 20  # pixels
_GROUND, _INK, _EMPTY = (24, 24, 27), (228, 228, 231), (39, 39, 42)


def draw_contact_sheet(data: DataSet, path: Path) -> None:
    """Writes `path` (PNG): evenly chosen scans of `data`, each with its modality and shape, never who it is of."""
    tiles = [_tile(voxels, entry) for entry, voxels in _chosen(data)]
    columns = min(8, math.ceil(math.sqrt(len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    width, height = _TILE + _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _GROUND)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP + number % columns * width, _GAP + number // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")


def _chosen(data: DataSet) -> list[tuple[SampleEntry, NDArray]]:
    """Up to 64 (entry, middle slice (C, H, W)), evenly spread over the data set."""
    total = data.manifest.scans
    wanted = sorted({number * total // _SCANS for number in range(_SCANS)})
    chosen, first = [], 0
    for shard in data.manifest.shards:
        here = [number - first for number in wanted if first <= number < first + shard.samples]
        first += shard.samples
        if not here:
            continue
        reader = ShardReader(data.folder, shard)
        for number in here:
            entry = reader.entries[number]
            middle = entry.shape[1] // 2
            region = (slice(middle, middle + 1), slice(None), slice(None))
            chosen.append((entry, reader.read(number, region)[:, 0]))
    return chosen


def _tile(voxels: NDArray, entry: SampleEntry) -> Image.Image:
    """A slice (C, H, W) as a picture of the tile's size with its caption below."""
    picture = Image.fromarray(_grey_or_rgb(voxels, entry))
    height, width = voxels.shape[1] * entry.spacing[1], voxels.shape[2] * entry.spacing[2]
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (_TILE, _TILE + _CAPTION), _GROUND)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, _TILE - 1, _TILE - 1), fill=_EMPTY)
    tile.paste(picture, ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2))
    channels, *axes = entry.shape
    shape = " x ".join(str(length) for length in (axes[1:] if axes[0] == 1 else axes))
    caption = f"{entry.modality}  {shape}" + ("  RGB" if channels == 3 else "")
    draw.text((_TILE / 2, _TILE + 3), caption, fill=_INK, font=ImageFont.load_default(13), anchor="ma")
    return tile


def _grey_or_rgb(voxels: NDArray, entry: SampleEntry) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3), windowed; anterior or superior up and the patient's right on the left."""
    low, high = entry.stats["p005"], entry.stats["p995"]
    if voxels.shape[0] == 3 and entry.dtype == "uint8":
        low, high = 0.0, 255.0
    scaled = ((voxels.astype(np.float32) - low) / max(high - low, 1e-12)).clip(0, 1) * 255
    pixels = np.moveaxis(scaled, 0, -1) if voxels.shape[0] == 3 else scaled[0]
    if entry.orientation and entry.orientation[1] in "AS":
        pixels = pixels[::-1]
    if entry.orientation and entry.orientation[2] == "R":
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.astype(np.uint8))
