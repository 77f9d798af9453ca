"""Size on disk, time and memory of a build, against nibabel's .nii.gz.

command: python benchmarks/storage.py --data ../shared/data --work runs/storage
Sizes: all that a data set needs (tars, indices, table, manifest) against the same scans as .nii.gz written by nibabel.
Time: one worker's CPU seconds for a whole build against loading and saving the same files with nibabel, in turns.
Memory: what a worker's peak adds to its start, in volumes (bytes of the largest scan in its own dtype).
"""

import argparse
import os
import resource
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


def cpu_of_build(scans: Path, out: Path, codec: str) -> float:
    """CPU seconds of a whole build in a process of its own with one worker, both counted, start-up included."""
    shutil.rmtree(out, ignore_errors=True)
    code = (
        "import sys; from pathlib import Path; from scanforge.datasets.shards.build import *; "
        "build([Path(sys.argv[1])], Path(sys.argv[2]), BuildOptions(workers=1, codec=sys.argv[3], modality='mr'))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, str(scans), str(out), codec], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu_of_nibabel(scans: Path, out: Path) -> float:
    """CPU seconds of loading and saving the same files."""
    out.mkdir(parents=True, exist_ok=True)
    code = (
        "import sys, nibabel, numpy; from pathlib import Path\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    image = nibabel.load(path)\n"
        "    array = numpy.asanyarray(image.dataobj)\n"
        "    nibabel.save(nibabel.Nifti1Image(array, image.affine), Path(sys.argv[2]) / path.name)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, str(scans), str(out)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_volumes(scans: Path, out: Path, codec: str) -> float:
    """Peak memory of a job above its start, in volumes."""
    largest = max(int(np.prod(i.shape)) * i.get_data_dtype().itemsize for i in map(nibabel.load, scans.iterdir()))
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from scanforge.datasets.shards.job import PARTIAL, Job, run, worker\n"
        "from scanforge.datasets.shards.sources import deal, find_sources\n"
        "from scanforge.datasets.labels.book import open_labels\n"
        "import webdataset, scanforge.datasets.readers.nifti, scanforge.datasets.labels.attach\n"
        "import scanforge.datasets.shards.encode\n"
        "book, none = open_labels([], [], False), lambda root, files: ([], [])\n"
        "sources, _ = find_sources([Path(sys.argv[1])], b'k' * 32, None, book, none)\n"
        "out = Path(sys.argv[2]); (out / PARTIAL).mkdir(parents=True)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for plan in deal(sources, 1 << 40):\n"
        "    list(run(Job(plan, out, b'k' * 32, 'mr', sys.argv[3])))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    shutil.rmtree(out, ignore_errors=True)
    answer = subprocess.run(
        [sys.executable, "-c", code, str(scans), str(out), codec], check=True, capture_output=True, text=True
    )
    return int(answer.stdout) * 1024 / largest


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
    cpu: dict[str, list[float]] = {"nibabel": [], **{codec: [] for codec in CODECS}}
    for _ in range(rounds):
        cpu["nibabel"].append(cpu_of_nibabel(folder, again))
        for codec in CODECS:
            cpu[codec].append(cpu_of_build(folder, out / codec, codec))
    resaved = folder_bytes(again)
    sizes = {codec: folder_bytes(out / codec) for codec in CODECS}
    medians = {codec: statistics.median(values) for codec, values in cpu.items()}
    line: dict[str, object] = {
        "scans": len(files), "nii_gz_bytes": nifti, "nii_gz_by_nibabel_bytes": resaved, "shard_bytes": sizes,
        "smaller_than_nii_gz": {codec: round(nifti / size, 3) for codec, size in sizes.items()},
        "smaller_than_nibabel": {codec: round(resaved / size, 3) for codec, size in sizes.items()},
        "cpu_seconds": {codec: [round(value, 2) for value in values] for codec, values in cpu.items()},
        "faster_than_nibabel": {codec: round(medians["nibabel"] / medians[codec], 2) for codec in CODECS},
        "peak_volumes": {codec: round(peak_volumes(folder, out / "memory", codec), 2) for codec in CODECS},
    }  # fmt: skip
    print(f"{name}: {line}", flush=True)
    time.sleep(0.1)
    return line


if __name__ == "__main__":
    main()
