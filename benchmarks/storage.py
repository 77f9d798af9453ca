"""Size on disk, time and memory of a build, against nibabel's .nii.gz.

command: python benchmarks/storage.py --data DATA --work runs/storage
Sizes: all that a data set needs (tars, indices, table, manifest) against the same scans as .nii.gz written by nibabel.
Time: a worker's CPU seconds against loading and saving the same files with nibabel, in turns; imports apart, which
take a build about 1.3 s once. Memory: what a worker's peak adds to its start, in volumes (bytes of the largest scan).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
from record import record
from scans import SIZES, large, small

from scanfoundry.datasets.shards.build import BuildOptions, build

CODECS = ("zstd", "lz4hc")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def as_nifti(scans: Path, out: Path) -> Path:
    """The same images as .nii.gz, as nibabel writes them."""
    if not out.exists():
        from PIL import Image

        out.mkdir(parents=True)
        for path in sorted(scans.glob("*.png")):
            voxels = np.asarray(Image.open(path))
            nibabel.save(nibabel.Nifti1Image(voxels.T[..., None], np.eye(4)), out / f"{path.stem}.nii.gz")
    return out


JOB = """
import resource, sys, time
from pathlib import Path
import blosc2, webdataset
import scanfoundry.datasets.labels.attach, scanfoundry.datasets.readers.nifti
from scanfoundry.datasets.labels.label_index import open_labels
from scanfoundry.datasets.shards.shard_worker import PARTIAL, ShardTask, run
from scanfoundry.datasets.discovery.sources import assign_shards, find_sources
scans, out, codec = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
blosc2.set_nthreads(1)
book, no_dicom = open_labels([], [], False), lambda root, files: ([], [])
sources, _ = find_sources([scans], b"k" * 32, None, book, no_dicom)
(out / PARTIAL).mkdir(parents=True)
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for plan in assign_shards(sources, 1 << 40):
    list(run(ShardTask(plan, out, b"k" * 32, "mr", codec)))
print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
NIBABEL = """
import sys, time
from pathlib import Path
import nibabel, numpy
began = time.process_time()
for path in sorted(Path(sys.argv[1]).glob("*.nii.gz")):
    image = nibabel.load(path)
    array = numpy.asanyarray(image.dataobj)
    nibabel.save(nibabel.Nifti1Image(array, image.affine), Path(sys.argv[2]) / path.name)
print(time.process_time() - began, 0)
"""


def child(code: str, scans: Path, out: Path, *words: str) -> tuple[float, float]:
    """CPU seconds for all scans, its imports apart, and what peak memory grew by (bytes), of a new process."""
    shutil.rmtree(out, ignore_errors=True)
    if code == NIBABEL:
        out.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(scans), str(out), *words]
    seconds, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(grown) * 1024


def main() -> None:
    """Print a table per set of scans, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    scans = given.work / "scans"
    sets = {modality: scans / modality for modality in SIZES}
    for modality, folder in sets.items():
        large(given.data, folder, given.count, SIZES[modality], modality)
    smalls = small(given.data, scans / "small")
    sets |= {"hippocampus": smalls["own"], "images": as_nifti(smalls["images"], scans / "images-nifti")}
    sets |= {"totalsegmentator": given.data / "totalsegmentator_examples"}
    result = {}
    for name, folder in sets.items():
        result[name] = measure(name, folder, given.work / "out", given.rounds)
    record("storage", result)


def measure(name: str, folder: Path, out: Path, rounds: int) -> dict[str, object]:
    """One set of scans."""
    files = [path for path in folder.iterdir() if path.name.endswith(".nii.gz")]
    if name == "totalsegmentator":  # beside it lie label maps
        chosen = out.parent / "totalsegmentator"
        shutil.rmtree(chosen, ignore_errors=True)
        chosen.mkdir(parents=True)
        files = [Path(shutil.copy(path, chosen)) for path in files if "seg" not in path.name]
        folder = chosen
    nifti = sum(os.path.getsize(path) for path in files)
    shutil.rmtree(out, ignore_errors=True)
    again = out / "nibabel"
    largest = max(int(np.prod(i.shape)) * i.get_data_dtype().itemsize for i in map(nibabel.load, files))
    cpu: dict[str, list[float]] = {"nibabel": [], **{codec: [] for codec in CODECS}}
    volumes: dict[str, float] = {}
    for _ in range(rounds):
        cpu["nibabel"].append(child(NIBABEL, folder, again)[0])
        for codec in CODECS:
            seconds, grown = child(JOB, folder, out / "job", codec)
            cpu[codec].append(seconds)
            volumes[codec] = max(volumes.get(codec, 0.0), round(grown / largest, 2))
    whole = {}
    for codec in CODECS:
        began = time.perf_counter()
        build([folder], out / codec, BuildOptions(codec=codec, modality="mr"))
        whole[codec] = round(time.perf_counter() - began, 2)
    resaved = folder_bytes(again)
    sizes = {codec: folder_bytes(out / codec) for codec in CODECS}
    medians = {codec: statistics.median(values) for codec, values in cpu.items()}
    line: dict[str, object] = {
        "scans": len(files), "nii_gz_bytes": nifti, "nii_gz_by_nibabel_bytes": resaved, "shard_bytes": sizes,
        "smaller_than_nii_gz": {codec: round(nifti / size, 3) for codec, size in sizes.items()},
        "smaller_than_nibabel": {codec: round(resaved / size, 3) for codec, size in sizes.items()},
        "cpu_seconds": {codec: [round(value, 2) for value in values] for codec, values in cpu.items()},
        "faster_than_nibabel": {codec: round(medians["nibabel"] / medians[codec], 2) for codec in CODECS},
        "peak_volumes": volumes, "largest_volume_bytes": largest, "whole_build_seconds_two_workers": whole,
    }  # fmt: skip
    print(f"{name}: {line}", flush=True)
    return line


if __name__ == "__main__":
    main()
