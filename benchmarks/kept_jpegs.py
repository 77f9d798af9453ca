"""JPEG files that stay JPEG: bytes of a data set against its sources, images per CPU second, CPU seconds of a build.

command: python benchmarks/kept_jpegs.py --chest CHEST --work runs/kept_jpegs [--every 8] [--whole]
Arms, of the same files: `jpeg` is --keep-jpeg; `voxels` is without; `three channels` is without, as versions stored
greys that were saved as colour before. Files: every `--every`-th of CHEST (224 x 224, grey saved as colour), and colour
of 224 x 224 that is drawn, with 4 kB of EXIF. Bytes are those of all files of the data set but quarantine.jsonl, which
names paths and is no part of it. `read` is a whole image out of the shard, each once, in order; `crops` is the
same through the loader without workers, by its plan, as a batch lies in memory. Arms take turns; medians of the rounds.
`--whole` also stores all of CHEST with --keep-jpeg, for its bytes.
"""

import argparse
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import blosc2
import numpy as np
from PIL import Image
from record import record

from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.datasets.shards import prepare
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.reader import DataSet, ShardReader

SIDE, BATCHES = 224, 16
ARMS = {"jpeg": (True, True), "voxels": (False, True), "three channels": (False, False)}  # keep_jpeg, joins_equal


def cpu() -> float:
    """CPU seconds of this process and of children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def draw(folder: Path, count: int) -> None:
    """Colour images as a camera writes them: smooth, with grain, and with metadata."""
    rng = np.random.default_rng(0)
    known = Image.Exif()
    known[0x010E] = "x" * 4000
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3)).astype(np.uint8)).resize((SIDE, SIDE), Image.BICUBIC)
        pixels = np.asarray(coarse) + rng.normal(size=(SIDE, SIDE, 1)) * 6
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=85, exif=known)


def stored(sources: Path, out: Path, arm: str, key: Path) -> dict[str, float]:
    """Build a data set; its bytes against those of the sources, and CPU seconds."""
    keep, join = ARMS[arm]
    shutil.rmtree(out, ignore_errors=True)
    joins, prepare.joins_equal = prepare.joins_equal, lambda out: join
    began = cpu()
    summary = build([sources], out, BuildOptions(modality="xr", workers=1, key_file=key, keep_jpeg=keep))
    prepare.joins_equal = joins
    held = sum(path.stat().st_size for path in out.iterdir() if path.name != "quarantine.jsonl")
    return {
        "images": summary.scans,
        "source_mb": summary.source_bytes / 1e6,
        "mb": held / 1e6,
        "ratio": held / summary.source_bytes,
        "build_cpu_ms_an_image": 1000 * (cpu() - began) / summary.scans,
    }


def read(folder: Path) -> float:
    """Whole images per CPU second, by readers that are new."""
    data, count, began = DataSet(folder), 0, time.process_time()
    for shard in data.manifest.shards:
        reader = ShardReader(data.folder, shard)
        for number, entry in enumerate(reader.entries):
            out = np.empty(entry.shape, np.uint8)
            reader.read_into(number, tuple(slice(0, length) for length in entry.shape[1:]), out)
            count += 1
        reader.close()
    return count / (time.process_time() - began)


def crops(folder: Path, channels: int) -> float:
    """Crops of whole images per CPU second of the loader, which fills batches in this process."""
    config = DataConfig(
        sources=[{"name": "x", "path": folder}], crop_2d=(SIDE, SIDE), batch_2d=32, workers=0, channels=channels
    )
    with CropLoader(config, seed=0) as loader:
        loader.crops()
        began = time.process_time()
        for _ in range(BATCHES):
            loader.crops()
        return 32 * BATCHES / (time.process_time() - began)


def compare(arms: Sequence[str], rate: Callable[[str], float], rounds: int) -> dict[str, float]:
    """The median rate of each arm, which take turns."""
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm in arms if turn % 2 else reversed(arms):
            found[arm].append(rate(arm))
    return {arm: round(statistics.median(rates)) for arm, rates in found.items()}


def main() -> None:
    """Build, measure and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chest", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    blosc2.set_nthreads(1)
    files = sorted(given.chest.glob("images/**/*.jp*g"))[:: given.every]
    folders = {"chest": given.work / "chest", "drawn": given.work / "drawn"}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for file in files:
        (folders["chest"] / file.name).symlink_to(file.resolve())
    draw(folders["drawn"], 300)
    result: dict[str, object] = {}
    for name, sources in folders.items():
        arms = list(ARMS) if name == "chest" else ["jpeg", "voxels"]
        for arm in arms:
            found = stored(sources, given.work / f"{name} {arm}", arm, given.work / "key")
            result[f"{name}, {arm}"] = {key: round(value, 3) for key, value in found.items()}
        result[f"{name}, images read per CPU second"] = compare(
            arms, lambda arm: read(given.work / f"{name} {arm}"), given.rounds  # noqa: B023 (called at once)
        )  # fmt: skip
        result[f"{name}, crops per CPU second"] = compare(
            arms, lambda arm: crops(given.work / f"{name} {arm}", 1 if name == "chest" else 3), given.rounds  # noqa: B023
        )  # fmt: skip
    if given.whole:
        found = stored(given.chest / "images", given.work / "all of chest", "jpeg", given.work / "key")
        result["all of chest, jpeg"] = {key: round(value, 3) for key, value in found.items()}
    for name, value in result.items():
        print(name, value)
    record("kept_jpegs", result)


if __name__ == "__main__":
    main()
