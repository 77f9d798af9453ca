"""CPU milliseconds and bytes of a crop out of a large scan: the scan seen for the first time, and visited again.

command: python benchmarks/crop_reads.py --work runs/crop_reads [--before NAMESPACE]
Volumes of 128 x 512 x 512 int16: smooth shapes, the noise of a CT, and one value outside a round field of view; they
compress as CT does. Crops of 96^3. `first`: every crop out of a scan that the process has not
touched; `again`: scans that it has. `cold`: first, and the file dropped from the page cache before (by fadvise), with
the bytes that the disk delivered. Bytes are those of reads from the shard, or of the scans that were mapped and
checked. NAMESPACE: as in many_sources.py; it gets the same scans in shards without tables of blocks, as it wrote them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import record

SIDE, SHAPE = 96, (128, 512, 512)


def measure(folder: str, visits: int, cold: bool) -> dict[str, float]:
    """Medians of crops, each round by readers that are new."""
    import numpy as np

    from scanfoundry.datasets.shards.reader import DataSet, ShardReader

    data, rng = DataSet(folder), np.random.default_rng(0)
    first, again, counted, delivered, total = [], [], [], [], 0

    def crop(reader: ShardReader, number: int) -> float:
        entry = reader.entries[number]
        starts = [int(rng.integers(0, length - SIDE + 1)) for length in entry.shape[1:]]
        out = np.empty((1, SIDE, SIDE, SIDE), entry.dtype)
        began = time.process_time()
        reader.read_into(number, tuple(slice(start, start + SIDE) for start in starts), out)
        return 1000 * (time.process_time() - began)

    read = os.pread

    def counting(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal total
        total += length
        return read(descriptor, length, offset)

    os.pread = counting
    for _ in range(visits):
        for shard in data.manifest.shards:
            reader = ShardReader(data.folder, shard)
            for number in range(len(reader.entries)):
                if cold:
                    with open(data.folder / shard.name, "rb") as stream:
                        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                total, before = 0, _from_disk()
                first.append(crop(reader, number))
                counted.append(total / 1e6)
                delivered.append((_from_disk() - before) / 1e6)
                again.append(statistics.median(crop(reader, number) for _ in range(5)))
            reader.close()
    found = {"first_ms": first, "again_ms": again, "first_mb": counted, "from_disk_mb": delivered}
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def _from_disk() -> int:
    """Bytes that this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def build(out: str, codec: str, count: int) -> None:
    """The scans as shards of four; made once."""
    import numpy as np
    from synthetic_shards import write

    def scan(number: int) -> np.ndarray:
        rng = np.random.default_rng(number)
        coarse = rng.normal(size=(8, 16, 16)) * 300
        voxels = np.kron(coarse, np.ones((16, 32, 32))) + rng.normal(size=SHAPE) * 20
        y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
        voxels[:, x * x + y * y > 1] = -1024
        return np.rint(voxels).astype(np.int16)[None]

    numbers = np.array_split(np.arange(count), max(1, count // 4))
    write(Path(out), ([scan(int(number)) for number in part] for part in numbers), codec)


def without_tables(folder: str, out: str) -> None:
    """The same shards as versions wrote them that knew no tables of blocks."""
    from synthetic_shards import copy_without_tables

    copy_without_tables(Path(folder), Path(out))


def main() -> None:
    """Each codec, by each version, in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--count", type=int, default=4, help="scans")
    parser.add_argument("--codecs", nargs="+", default=["zstd", "lz4hc"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--one", nargs="+", help="what a child process does")
    given = parser.parse_args()
    if given.one and given.one[0] == "build":
        return build(given.one[1], given.one[2], int(given.one[3]))
    if given.one and given.one[0] == "without":
        return without_tables(*given.one[1:])
    if given.one:
        return print(json.dumps(measure(given.one[1], given.visits, given.one[0] == "cold")))
    versions = {"now": os.environ.get("PYTHONPATH", "")} | ({"before": str(given.before)} if given.before else {})

    def child(version: str, *words: str) -> str:
        command = [sys.executable, __file__, "--work", str(given.work)]
        environment = {**os.environ, "PYTHONPATH": versions[version], "OMP_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}
        command += ["--visits", str(given.visits), "--one", *words]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    found: dict[str, list[dict[str, float]]] = {}
    for codec in given.codecs:
        folders = {version: given.work / f"{'tables' if version == 'now' else 'plain'}-{codec}" for version in versions}
        child("now", "build", str(given.work / f"tables-{codec}"), codec, str(given.count))
        if given.before:
            child("now", "without", str(folders["now"]), str(folders["before"]))
        for _ in range(given.rounds):
            for how in ("warm", "cold"):
                for version, folder in folders.items():
                    answer = json.loads(child(version, how, str(folder)))
                    found.setdefault(f"{codec}, {how}, {version}", []).append(answer)
    for name, runs in found.items():
        print(name, {key: statistics.median(run[key] for run in runs) for key in runs[0]}, flush=True)
    record("crop_reads", found)


if __name__ == "__main__":
    main()
