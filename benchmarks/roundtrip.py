"""Build shards from the real folders and hold every stored voxel against the source, read by nibabel or pillow.

command: python benchmarks/roundtrip.py --data DATA --out runs/shards
"""

import argparse
import time
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from record import record

from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.discovery.sources import find_sources
from scanfoundry.datasets.identity import site_key
from scanfoundry.datasets.labels.label_index import open_labels
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.reader import DataSet, ShardReader
from scanfoundry.datasets.shards.shard_worker import sample_key

FOLDERS = {
    "hippocampus": ("msd_task04_hippocampus/imagesTr", "mr"),
    "ultrasound": ("busi_breast_ultrasound/images", "us"),
    "xray": ("nih_chestxray8_2class/images", "xr"),
}


def source_voxels(path: Path) -> np.ndarray:
    """(C, D, H, W) as the source's own library reads it."""
    if path.suffix == ".gz":
        return np.asanyarray(nibabel.load(path).dataobj).T[None]
    array = np.asarray(Image.open(path))
    return array[None, None] if array.ndim == 2 else np.moveaxis(array, -1, 0)[:, None]


def main() -> None:
    """Build, check, compare; print a table and write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = {}
    for name, (folder, modality) in FOLDERS.items():
        root = arguments.data / folder
        started = time.perf_counter()
        summary = build([root], arguments.out / name, BuildOptions(modality=modality))
        seconds = time.perf_counter() - started
        report = check(arguments.out / name, arguments.out / f"{name}.png")
        result[name] = {
            "sources": summary.sources, "scans": summary.scans, "quarantined": summary.quarantined,
            **compare(root, arguments.out / name), "seconds": round(seconds, 1),
            "size_ratio_to_source": round(summary.source_bytes / summary.bytes, 3), "checked_scans": report.scans,
        }  # fmt: skip
        print(name, result[name])
    record("roundtrip", result)


def compare(root: Path, shards: Path) -> dict[str, int]:
    """Number of scans and of voxels equal to the source, and of scans that differ or are missing."""
    stored = DataSet(shards)
    readers = [ShardReader(shards, shard) for shard in stored.manifest.shards]
    where = {entry.key: (reader, n) for reader in readers for n, entry in enumerate(reader.entries)}
    key = site_key()
    equal = voxels = different = 0
    twins = {
        line.path: line.reason.removeprefix("has the same voxels as ").split(";")[0] for line in read_quarantine(shards)
    }
    book, no_dicom = open_labels([], [], False), lambda root, files: ([], [])
    sources = {each.source.relative: each for each in find_sources([root], key, None, book, no_dicom)[0]}
    keys = {relative: sample_key(key, each, "") for relative, each in sources.items()}
    for relative, each in sources.items():
        wanted = source_voxels(each.source.paths[0])
        reader, number = where.get(keys[twins.get(relative, relative)], (None, 0))
        if reader is not None and np.array_equal(reader.read(number), wanted):
            equal, voxels = equal + 1, voxels + wanted.size
        else:
            different += 1
    return {
        "equal": equal,
        "voxels": voxels,
        "different_or_missing": different,
        "without_source": len(where.keys() - set(keys.values())),
    }


if __name__ == "__main__":
    main()
