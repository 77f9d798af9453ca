"""Correlations of descriptors between different scans and between a scan and its re-exports, and what a search finds.

command: python benchmarks/near_duplicates.py --data DATA
Per data set: the highest correlation of each scan with one of another patient (of another file, where patients are not
known), of descriptors and of the raw coarse grid; then the correlations of 30 scans with re-exports of each kind. The
search is compared with all pairs. CPU time of a descriptor is a share of that of what a build does with a scan in
memory (statistics, foreground, encoding, hash, descriptor), in turns.
"""

import argparse
import io
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from record import record
from scipy.ndimage import zoom

from scanfoundry.datasets.intensity import statistics
from scanfoundry.datasets.readers import read
from scanfoundry.datasets.shards.encode import encode
from scanfoundry.datasets.shards.foreground import foreground_bitmap
from scanfoundry.datasets.shards.near_duplicates import NEAR, Describable, find_near_duplicates
from scanfoundry.datasets.shards.thumbnail import CELLS, describe
from scanfoundry.datasets.shards.writer import content_hash

# Files, and what of a file's name is the patient where that is known.
SETS = {
    "children's chest X-ray": ("chestxray_children_3class/images/*", r"person\d+|IM-\d+"),
    "chest X-ray": ("nih_chestxray8_2class/images/*", ""),
    "breast ultrasound": ("busi_breast_ultrasound/images/*", ""),
    "skin": ("skin_ham10000/images/*", ""),
    "blood": ("bccd_blood_cells/JPEGImages/*", ""),
    "hand": ("medical_mnist_pool/images/Hand/*", ""),
    "hippocampus": ("msd_task04_hippocampus/imagesTr/*.nii.gz", ""),
    "left atrium": ("left_atrium_mr/imagesTr/*.nii.gz", ""),
    "heart": ("acdc_cardiac_mr/imagesTr/*.nii.gz", r"patient\d+"),
}
EXPORTED = 30


def descriptor(voxels: NDArray) -> NDArray[np.int8]:
    """Of voxels (C, D, H, W)."""
    return describe(voxels, statistics(voxels))


def raw(voxels: NDArray) -> NDArray[np.float64]:
    """The same grid without transform and weights."""
    flat = voxels.shape[1] == 1
    grid = voxels.mean(axis=0)
    for axis in range(1 if flat else 0, 3):
        edges = np.linspace(0, grid.shape[axis], CELLS[flat] + 1).astype(int)
        parts = [np.take(grid, range(low, max(high, low + 1)), axis) for low, high in pairwise(edges)]
        grid = np.stack([part.mean(axis) for part in parts], axis)
    return grid.reshape(-1)


def re_exports(voxels: NDArray, random: np.random.Generator) -> Iterator[tuple[str, NDArray]]:
    """Kinds of re-exports of (C, D, H, W)."""
    low, high = np.percentile(voxels, [0.5, 99.5])
    sizes = [1, *(1 if length == 1 else 0.6 for length in voxels.shape[1:])]
    grey = (255 * np.clip((voxels - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
    smaller = zoom(grey, sizes, order=1)
    yield "8 bits, window", grey
    yield "noise of 5%", voxels + random.normal(0, 0.05 * (high - low), voxels.shape)
    yield "0.6 of the size", smaller
    yield "1.3 of the size", zoom(grey, [1, *(1 if length == 1 else 1.3 for length in voxels.shape[1:])], order=1)
    if voxels.shape[1] == 1:
        stream = io.BytesIO()
        Image.fromarray(smaller.mean(axis=0)[0].astype(np.uint8)).save(stream, "JPEG", quality=40)
        yield "JPEG 40, 0.6 of the size", np.asarray(Image.open(stream))[None, None]
    edges = [round(0.01 * length) for length in voxels.shape[1:]]
    yield "cropped by 2%", voxels[(slice(None), *(slice(edge, -edge or None) for edge in edges))]


def correlations(one: NDArray, other: NDArray) -> NDArray[np.float32]:
    """Of all rows with all rows."""
    units = []
    for rows in (one, other):
        centred = rows.astype(np.float32) - (0 if rows.dtype == np.int8 else rows.mean(1, keepdims=True))
        units.append(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9))
    return units[0] @ units[1].T


def closest(scans: list[NDArray], found: NDArray, names: list[str]) -> dict[str, object]:
    """Of each scan, the correlation with the closest one of another name: median, 99%, highest; how many are near."""
    apart = np.array(names)[:, None] != np.array(names)
    figures: dict[str, object] = {}
    for what, rows in (("descriptor", found), ("raw grid", np.array([raw(scan.astype(float)) for scan in scans]))):
        highest = np.where(apart, correlations(rows, rows), -1).max(axis=1)
        figures[what] = [round(float(np.quantile(highest, level)), 3) for level in (0.5, 0.99, 1.0)]
        figures[f"{what}, scans from {NEAR} on"] = int((highest >= NEAR).sum())
    return figures


def exported(scans: list[NDArray], found: NDArray, random: np.random.Generator) -> dict[str, list[float]]:
    """Correlations of scans with their re-exports, by kind: lowest, median, and the share that is near."""
    values: dict[str, list[float]] = {}
    for number in random.permutation(len(scans))[:EXPORTED]:
        for kind, again in re_exports(scans[number].astype(float), random):
            value = correlations(found[number : number + 1], descriptor(again)[None])[0, 0]
            values.setdefault(kind, []).append(float(value))
    return {
        kind: [round(min(each), 3), round(float(np.median(each)), 3), round(np.mean(np.array(each) >= NEAR), 2)]
        for kind, each in values.items()
    }


def searched(found: NDArray[np.int8]) -> dict[str, int]:
    """What the search leaves out, and what it misses."""
    count = len(found)
    scans = Describable(found, np.zeros(count, int), -1, np.ones((count, 2, 3)), np.arange(count))
    kept = np.ones(count, bool)
    kept[[pair.row for pair in find_near_duplicates(scans)]] = False
    near = np.triu(correlations(found, found) >= NEAR, 1)
    missed = int(near[np.ix_(kept, kept)].sum())
    return {"near pairs": int(near.sum()), "left out": int((~kept).sum()), "near pairs among the kept": missed}


def share_of_time(scans: list[NDArray]) -> float:
    """CPU time of descriptors as a share of that of a build's work on scans in memory."""

    def seconds(work: Callable[[NDArray], object]) -> float:
        began = time.process_time()
        for scan in scans:
            work(scan)
        return time.process_time() - began

    stats = {id(scan): statistics(scan) for scan in scans}
    works: list[Callable[[NDArray], object]] = [
        lambda scan: describe(scan, stats[id(scan)]),
        statistics,
        lambda scan: foreground_bitmap(scan, stats[id(scan)]["threshold"]),
        lambda scan: encode(scan, "zstd"),
        content_hash,
    ]
    rounds = np.median([[seconds(work) for work in works] for _ in range(3)], axis=0)
    return float(rounds[0] / rounds.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--most", type=int, default=400, help="scans of a data set")
    given = parser.parse_args()
    result, everything = {}, []
    for name, (files, pattern) in SETS.items():
        random = np.random.default_rng(0)
        paths = sorted(given.data.glob(files))
        paths = [paths[number] for number in sorted(random.permutation(len(paths))[: given.most])]
        scans = [read(path)[0].voxels for path in paths]
        found = np.array([descriptor(scan) for scan in scans])
        names = [match[0] if pattern and (match := re.search(pattern, path.name)) else path.name for path in paths]
        result[name] = {
            "scans": len(scans),
            "closest": closest(scans, found, names),
            "re-exports": exported(scans, found, random),
            "share of CPU time": round(share_of_time(scans[:20]), 4),
        }
        print(name, result[name], flush=True)
        if scans[0].shape[1] == 1:
            everything.append(found)
    search = searched(np.concatenate(everything))
    print(search)
    record("near_duplicates", {"threshold": NEAR, "sets": result, "search in all images": search})


if __name__ == "__main__":
    main()
