"""A folder of numbered images as one video."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scanfoundry.datasets.readers.image import read_image
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

MIN_FRAMES = 8
PART_BYTES = 256 * 2**20  # of a long video in memory at once
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d{1,9})")


def find_frame_folders(root: Path, files: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The videos among `files` (relative to `root`, '/' between parts), and the files that belong to none.

    A video: at least `MIN_FRAMES` images of one suffix and one size in one folder, called by one stem and a number
    behind it ('frame_0001.png'; padded with zeros or not, each number once, at least half of the run there: a dropped
    frame does not cut a patient in two). Images of different patients may be called just so: for those who ask only.
    """
    groups: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for file in files:
        path = PurePosixPath(file)
        match = _NUMBERED.fullmatch(path.stem)
        if match is not None and path.suffix.lower() in _SUFFIXES:
            key = (path.parent.as_posix(), match["stem"], path.suffix.lower())
            groups.setdefault(key, []).append((int(match["number"]), file))
    videos: list[Source] = []
    taken: set[str] = set()
    for group in groups.values():
        group.sort()
        if _consecutive([number for number, _ in group]) and _one_size([root / file for _, file in group]):
            frames = tuple(file for _, file in group)
            videos.append(Source.of_files(root, "frames", frames))
            taken.update(frames)
    return videos, [file for file in files if file not in taken]


def read_frames(source: Source) -> Iterator[Scan]:
    """The video whose frames are the source's files, in their order: (1 or 3, D = frames, H, W).

    A long one comes in parts '0', '1', ... of about `PART_BYTES`.

    Raises:
        ReadError: a frame is damaged, or has another shape than the first.
    """
    paths = source.paths
    first = _frame(paths[0], 0)
    length = max(1, PART_BYTES // max(1, first.nbytes))
    for part, start in enumerate(range(0, len(paths), length)):
        count = min(length, len(paths) - start)
        voxels = np.empty((len(first), count, *first.shape[1:]), first.dtype)
        for offset in range(count):
            frame = _frame(paths[start + offset], start + offset)
            if frame.shape != first.shape or frame.dtype != first.dtype:
                raise ReadError(f"frame {start + offset} is {frame.shape} {frame.dtype}, the first {first.shape}")
            voxels[:, offset] = frame
        yield Scan(voxels, (1.0, 1.0, 1.0), part=str(part) if len(paths) > length else "", frames=True)


def _frame(path: Path, number: int) -> NDArray:
    """(C, H, W)."""
    try:
        (scan,) = read_image(Source(path.parent, "image", path.name, (path.name,), 0, 0))
    except ReadError as error:
        raise ReadError(f"frame {number}: {error}") from error
    return scan.voxels[:, 0]


def _consecutive(numbers: list[int]) -> bool:
    run = numbers[-1] - numbers[0] + 1
    return len(numbers) >= MIN_FRAMES and len(set(numbers)) == len(numbers) and 2 * len(numbers) >= run


def _one_size(paths: list[Path]) -> bool:
    """By the headers. What pillow cannot open is left for the reader to refuse, with the whole video."""
    sizes = set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return len(sizes) == 1
