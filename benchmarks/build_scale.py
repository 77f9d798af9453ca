"""Building at scale: what a survey of many DICOM slices and the bookkeeping of many shards cost.

command: python benchmarks/build_scale.py --before OTHER/.venv/bin/python --work runs/scale --slices 20000
Survey: CPU milliseconds a slice and peak memory of the process that surveys, with one worker, again after a restart.
Its files are sparse: a header as scanners write it, and a hole for the pixels. Two sizes say whether it is linear.
Names: memory of the process that surveys for the names of a million slices and their sources, without any file.
Append: CPU of 5% more images beside that of the build, both without what a process costs that builds one image.
Bookkeeping: CPU seconds for shards that finish one after the other, with the report and the check at each of them, and
milliseconds a shard of a restart that finds them finished.
Each round runs both checkouts in turn, in processes of their own; the figures are medians of the rounds.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
from pathlib import Path

from record import record

SURVEY = """
import inspect, json, resource, sys, time
from pathlib import Path
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.discovery.sources import assign_shards, find_sources
from scanfoundry.datasets.labels.label_index import open_labels
folder, kept = Path(sys.argv[1]), Path(sys.argv[2])
more = [kept] if "kept" in inspect.signature(find_dicom).parameters else []
finder = lambda root, files: find_dicom(root, files, 1, lambda *told: None, *more)
sources, none = find_sources([folder], b"k" * 32, None, open_labels([], [], False), finder)
plans = assign_shards(sources, 300 * 2**20)
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps({
    "sources": len(sources), "files": sum(len(each.source.files) for each in sources), "none": len(none),
    "cpu_s": sum(each.ru_utime + each.ru_stime for each in used), "parent_cpu_s": used[0].ru_utime + used[0].ru_stime,
    "peak_mb": int(peak) / 1024, "worker_peak_mb": used[1].ru_maxrss / 1024,
}))
"""
LEDGER = """
import json, sys, time
from pathlib import Path
from scanfoundry.datasets.shards.build_progress import BuildProgress
from scanfoundry.datasets.shards.format import ShardRecord
from scanfoundry.datasets.shards.shard_worker import ShardResult
shards, sources = int(sys.argv[1]), 4
record = ShardRecord(name="x.tar", bytes=1, sha256="0" * 64, index_sha256="0" * 64, samples=sources, modalities={})
progress = BuildProgress(Path("nowhere"), shards * sources, 0.1, {}, [], lambda *told: None)
began = time.process_time()
for number in range(shards):
    name = f"shard-{number:06d}.tar"
    for source in range(sources):
        progress.underway[name] = source
        progress.report()
    progress.add(name, ShardResult(record=record, paths=["a/b"] * sources, sources=sources, quarantine=[]))
print(json.dumps({"cpu_s": time.process_time() - began}))
"""
RESUME = """
import json, sys, time
from pathlib import Path
from scanfoundry.datasets.shards.build_progress import BuildProgress
from scanfoundry.datasets.shards.format import ShardRecord, to_json
from scanfoundry.datasets.shards.resume import finished_shards
from scanfoundry.datasets.shards.shard_worker import PARTIAL, ShardResult
out, shards, sources = Path(sys.argv[1]), int(sys.argv[2]), 4
(out / PARTIAL).mkdir(parents=True)
names = [f"shard-{number:06d}.tar" for number in range(shards)]
for name in names:
    record = ShardRecord(name=name, bytes=1, sha256="0" * 64, index_sha256="0" * 64, samples=sources, modalities={})
    result = ShardResult(record=record, paths=["a/b"] * sources, sources=sources, quarantine=[])
    (out / PARTIAL / f"{name}.json").write_bytes(to_json(result))
    for end in (".thumbnails.npy", ".final.json"):
        (out / PARTIAL / f"{name}{end}").touch()
began = time.process_time()
progress = BuildProgress(out, shards * sources, 0.1, finished_shards(out, names), [], lambda *told: None)
print(json.dumps({"found": len(progress.shards), "ms_a_shard": 1000 * (time.process_time() - began) / shards}))
"""
NAMES = """
import json, sys
from pathlib import Path
from scanfoundry.datasets.readers import Source
from scanfoundry.datasets.readers.listing import FileListing, packed_names
slices, each = int(sys.argv[1]), 250
listing, root = FileListing(), Path("in")
for series in range(slices // each):
    folder = f"patient{series // 4:06d}/series{series:06d}"
    listing.add_folder(root, folder, [f"IM{place:05d}.dcm" for place in range(each)])
sources = []
for series in range(slices // each):
    folder = f"patient{series // 4:06d}/series{series:06d}"
    names = packed_names([f"{folder}/IM{place:05d}.dcm" for place in range(each)])
    sources.append(Source(root, "dicom-volume", f"1.2.3.{series} 512x512x1 ct", names, 1, 1, "P", "1.2.3"))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps({"files": len(listing), "sources": len(sources), "peak_mb": int(peak) / 1024}))
"""
APPEND = """
import json, resource, sys
from pathlib import Path
import numpy as np
from scanfoundry.datasets.shards.build import BuildOptions, append, build
work, images = Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
for folder, count in (("old", images), ("new", images // 20)):
    (work / folder).mkdir(parents=True)
    for number in range(count):
        np.save(work / folder / f"{folder}{number}.npy", rng.integers(0, 255, (64, 64)).astype(np.uint8))
options = BuildOptions(key_file=work / "key", workers=1, shard_mb=1)
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
taken = {}
(work / "few").mkdir()
np.save(work / "few" / "few.npy", rng.integers(0, 255, (64, 64)).astype(np.uint8))
jobs = {  # the first pays for imports, the second is what a process costs whatever it builds
    "warm": lambda: build([work / "few"], work / "few out", options),
    "one_image_s": lambda: build([work / "few"], work / "few again", options),
    "build_s": lambda: build([work / "old"], work / "out", options),
    "append_s": lambda: append([work / "new"], work / "out", options),
}
for name, job in jobs.items():
    before = cpu()
    job()
    taken[name] = cpu() - before
fixed = taken["one_image_s"]
print(json.dumps({**taken, "share": (taken["append_s"] - fixed) / (taken["build_s"] - fixed)}))
"""


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """An explicit little-endian element."""
    value += b"" if len(value) % 2 == 0 else b"\0" if kind == b"UI" else b" "
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def make_slices(folder: Path, slices: int, each: int = 250) -> None:
    """Series of `each` CT slices in a folder of their own; 512 x 512 pixels that take no room."""
    for number in range(slices):
        series, place = divmod(number, each)
        path = folder / f"patient{series // 4:06d}" / f"series{series:06d}" / f"IM{place:05d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        uid = f"1.2.826.0.1.3680043.9.7777.{series}"
        meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
        content = bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta
        content += b"".join(
            element(tag >> 16, tag & 0xFFFF, kind, text.encode() if isinstance(text, str) else text)
            for tag, kind, text in header(uid, series, place, each)
        )
        content += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 512 * 512 * 2)
        path.write_bytes(content)
        os.truncate(path, len(content) + 512 * 512 * 2)


def header(uid: str, series: int, place: int, each: int) -> list[tuple[int, bytes, str | bytes]]:
    """About as many elements as a CT scanner writes."""
    known: list[tuple[int, bytes, str | bytes]] = [
        (0x00080008, b"CS", "ORIGINAL\\PRIMARY\\AXIAL"), (0x00080016, b"UI", "1.2.840.10008.5.1.4.1.1.2"),
        (0x00080018, b"UI", f"{uid}.{place}"), (0x00080020, b"DA", "20200101"), (0x00080023, b"DA", "20200101"),
        (0x00080030, b"TM", "101010.000"), (0x00080032, b"TM", f"1010{place % 60:02d}.000"),
        (0x00080033, b"TM", f"1010{place % 60:02d}.500"), (0x00080050, b"SH", f"A{series:08d}"),
        (0x00080060, b"CS", "CT"), (0x00080070, b"LO", "SIEMENS"), (0x00080080, b"LO", "Hospital"),
        (0x00081030, b"LO", "Thorax"), (0x0008103E, b"LO", "Thorax 1.0 B30f"), (0x00081090, b"LO", "Sensation 64"),
        (0x00100010, b"PN", f"Name^{series // 4}"), (0x00100020, b"LO", f"P{series // 4:08d}"),
        (0x00100030, b"DA", "19500101"), (0x00100040, b"CS", "F"), (0x00101010, b"AS", "070Y"),
        (0x00180015, b"CS", "CHEST"), (0x00180050, b"DS", "1"), (0x00180060, b"DS", "120"),
        (0x00181020, b"LO", "VB42B"), (0x00181030, b"LO", "Thorax"), (0x00181100, b"DS", "380"),
        (0x00181120, b"DS", "0"), (0x00181150, b"IS", "500"), (0x00181151, b"IS", "200"), (0x00181152, b"IS", "100"),
        (0x00181210, b"SH", "B30f"), (0x00185100, b"CS", "HFS"), (0x0020000D, b"UI", f"{uid}.0.1"),
        (0x0020000E, b"UI", f"{uid}.0.2"), (0x00200010, b"SH", "1"), (0x00200011, b"IS", "3"),
        (0x00200012, b"IS", "1"), (0x00200013, b"IS", str(place + 1)),
        (0x00200032, b"DS", f"-190.0\\-190.0\\{place - each / 2:.1f}"), (0x00200037, b"DS", "1\\0\\0\\0\\1\\0"),
        (0x00200052, b"UI", f"{uid}.0.3"), (0x00201041, b"DS", f"{place - each / 2:.1f}"),
        (0x00280002, b"US", struct.pack("<H", 1)), (0x00280004, b"CS", "MONOCHROME2"),
        (0x00280010, b"US", struct.pack("<H", 512)), (0x00280011, b"US", struct.pack("<H", 512)),
        (0x00280030, b"DS", "0.742\\0.742"), (0x00280100, b"US", struct.pack("<H", 16)),
        (0x00280101, b"US", struct.pack("<H", 12)), (0x00280102, b"US", struct.pack("<H", 11)),
        (0x00280103, b"US", struct.pack("<H", 0)), (0x00281050, b"DS", "40"), (0x00281051, b"DS", "400"),
        (0x00281052, b"DS", "-1024"), (0x00281053, b"DS", "1"),
    ]  # fmt: skip
    return known


def measured(python: str, code: str, *words: str | Path) -> dict[str, float]:
    """What the code prints in a process of that checkout."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-c", code, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: round(statistics.median(each[name] for each in rounds), 3) for name in rounds[0]}


def survey(pythons: dict[str, str], work: Path, slices: int, rounds: int) -> dict[str, object]:
    """Both checkouts, and a restart of this one."""
    folder = work / f"slices-{slices}"
    if not folder.exists():
        make_slices(folder, slices)
    taken: dict[str, list[dict[str, float]]] = {}
    for turn in range(rounds):
        for side in sorted(pythons, reverse=turn % 2 == 1):
            kept = work / "survey"
            shutil.rmtree(kept, ignore_errors=True)
            taken.setdefault(side, []).append(measured(pythons[side], SURVEY, folder, kept))
            if side == "after":
                taken.setdefault("after, again", []).append(measured(pythons[side], SURVEY, folder, kept))
    return {side: {**medians(found), "ms_a_slice": round(1000 * medians(found)["cpu_s"] / slices, 4)}
            for side, found in taken.items()}  # fmt: skip


def main() -> None:
    """Measure what is asked for and write it to the folder of results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", help="the other checkout's .venv/bin/python")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--slices", type=int, nargs="*", default=[5000, 20000])
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 2000])
    parser.add_argument("--shards-after", type=int, default=1_000_000, help="of this checkout alone")
    parser.add_argument("--names", type=int, default=1_000_000, help="of slices, which are no files: memory alone")
    parser.add_argument("--images", type=int, nargs="*", default=[2000], help="of a build, to which 5%% are appended")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="build_scale", help="of the file of results")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    pythons = {"after": sys.executable, **({"before": given.before} if given.before else {})}
    result: dict[str, object] = {}
    for slices in given.slices:
        result[f"survey of {slices} slices"] = survey(pythons, given.work, slices, given.rounds)
    for shards in given.shards:
        result[f"ledger of {shards} shards"] = {
            side: medians([measured(python, LEDGER, str(shards)) for _ in range(given.rounds)])
            for side, python in pythons.items()
        }
        shutil.rmtree(given.work / "resume", ignore_errors=True)
        result[f"restart behind {shards} shards"] = measured(sys.executable, RESUME, given.work / "resume", str(shards))
    if given.names:
        result[f"names of {given.names} slices"] = measured(sys.executable, NAMES, str(given.names))
    for images in given.images:
        taken = []
        for _ in range(given.rounds):
            shutil.rmtree(given.work / "append", ignore_errors=True)
            taken.append(measured(sys.executable, APPEND, given.work / "append", str(images)))
        result[f"append of 5% to {images} images"] = medians(taken)
    if given.shards_after:
        result[f"ledger of {given.shards_after} shards"] = measured(sys.executable, LEDGER, str(given.shards_after))
    print(json.dumps(result, indent=1))
    if not given.dry:
        record(given.name, result)


if __name__ == "__main__":
    main()
