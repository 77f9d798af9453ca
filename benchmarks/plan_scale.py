"""The sampling plan of millions of scans: CPU seconds and memory of one rank.

command: python benchmarks/plan_scale.py --work runs/plan --scans 1000000 10000000 [--before NAMESPACE]
Shards of 1,000 images that are files without content, every scan a patient of its own, a tenth held out: what a plan
reads is the manifest, the table of scans, and the size of each shard. NAMESPACE: as in many_sources.py.
--grown: beside it, the plan of a run that began on the first 95% of the same scans (`plan_grown.json`).
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from record import record

if TYPE_CHECKING:
    from scanfoundry.datasets.plan import SamplingPlan

IN_SHARD = 1000


def make(folder: Path, scans: int) -> Path:
    """A data set without scans in its shards; made once."""
    import numpy as np

    from scanfoundry.datasets.shards.format import MANIFEST, SAMPLES, Manifest, ShardRecord, to_json
    from scanfoundry.datasets.shards.table import ROW

    if (folder / MANIFEST).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    digest, rng = hashlib.sha256(), np.random.default_rng(0)
    shards = scans // IN_SHARD
    table = np.lib.format.open_memmap(folder / SAMPLES, "w+", ROW, (scans,))
    for first in range(0, scans, 100 * IN_SHARD):
        part = table[first : first + 100 * IN_SHARD]
        numbers = np.arange(first, first + len(part))
        part["shard"], part["sample"] = np.divmod(numbers, IN_SHARD)
        part["depth"], part["flat"] = 1, True
        texts = rng.bytes(16 * len(part)).hex().encode()
        part["patient"] = np.frombuffer(texts, "S32")
        part["study"] = np.frombuffer(rng.bytes(16 * len(part)).hex().encode(), "S32")
        heads = np.frombuffer(bytes.fromhex(b"".join(part["patient"]).decode()), ">u8")[::2].astype(np.uint64)
        part["least"] = (heads >> np.uint64(12)).astype(np.float64) / 16.0**13
    table.flush()
    with open(folder / SAMPLES, "rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    records = []
    for number in range(shards):
        name = f"shard-{number:06d}.tar"
        (folder / name).touch()
        os.truncate(folder / name, 10240)
        records.append(
            ShardRecord(
                name=name, bytes=10240, sha256="0" * 64, index_sha256="0" * 64, samples=IN_SHARD,
                modalities={"xr": IN_SHARD},
            )
        )  # fmt: skip
    manifest = Manifest(
        version=2, tool="benchmark", parameters={}, scans=scans, patients=scans, modalities={"xr": scans},
        samples_sha256=digest.hexdigest(), shards=records,
    )  # fmt: skip
    (folder / MANIFEST).write_bytes(to_json(manifest))
    return folder


def give_parent(folder: Path) -> None:
    """Make it a data set that the last 5% of its scans were appended to."""
    import numpy as np

    from scanfoundry.datasets.shards.format import MANIFEST, SAMPLES, Manifest, ParentRecord, to_json

    manifest, table = Manifest.model_validate_json((folder / MANIFEST).read_bytes()), "samples-000001.npy"
    if manifest.parent is not None:
        return
    shards = manifest.shards[: len(manifest.shards) * 19 // 20]
    scans = IN_SHARD * len(shards)
    np.save(folder / table, np.load(folder / SAMPLES, mmap_mode="r")[:scans])
    sums = {"samples": table, "samples_sha256": hashlib.sha256((folder / table).read_bytes()).hexdigest()}
    content = to_json(manifest.model_copy(update={"scans": scans, "shards": shards, **sums}))
    (folder / "manifest-000000.json").write_bytes(content)
    parent = ParentRecord(
        file="manifest-000000.json", sha256=hashlib.sha256(content).hexdigest(), scans=scans, shards=len(shards)
    )
    (folder / MANIFEST).write_bytes(to_json(manifest.model_copy(update={"parent": parent})))


def plan_of(folder: str, grown: bool) -> "SamplingPlan":
    """The plan of a new run, or of one that grew after 1,000 steps."""
    from scanfoundry.datasets.plan import DataConfig, SamplingPlan

    config = DataConfig(sources=[{"name": "a", "path": folder}], crop_2d=(16, 16), batch_2d=64, holdout=0.1)
    if not grown:
        return SamplingPlan(config, 0)
    from scanfoundry.datasets.plan import open_sources
    from scanfoundry.datasets.sampling.segments import Segment

    (data,) = open_sources(config)
    (before,) = data.earlier_manifests()
    return SamplingPlan(config, 0, [Segment(0, {"a": before}), Segment(1000, {"a": data.manifest_hash})], [data])


def measure(folder: str, grown: bool) -> dict[str, float | str]:
    """CPU seconds of a plan, peak memory over that of the imports, and what tells its crops from others."""
    import scanfoundry.datasets.plan  # noqa: F401 (not counted)

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    began = time.process_time()
    plan = plan_of(folder, grown)
    made = time.process_time() - began
    draws = [plan.draws(step) for step in (0, 1, 1000, plan.steps_per_epoch - 1)]
    peak, kept = memory("VmHWM") - before, memory("VmRSS") - before
    crops = hashlib.sha256(repr([[tuple(map(int, draw)) for draw in each] for each in draws]).encode()).hexdigest()
    return {"cpu_seconds": round(made, 2), "peak_mb": round(peak), "kept_mb": round(kept), "crops": crops}


def memory(name: str) -> float:
    """A line of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main() -> None:
    """Each size, by each version, in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--scans", type=int, nargs="+", default=[10**6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grown", action="store_true")
    parser.add_argument("--one", help="what a child process measures")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.grown)))
        return
    versions = {"now": os.environ.get("PYTHONPATH", "")} | ({"before": str(given.before)} if given.before else {})
    if given.grown:
        versions = {"now": versions["now"], "grown": versions["now"]}
    result: dict[str, object] = {}
    for scans in given.scans:
        folder = make(given.work / str(scans), scans)
        if given.grown:
            give_parent(folder)
        found: dict[str, list[dict[str, float | str]]] = {version: [] for version in versions}
        for _ in range(given.rounds):
            for version, path in versions.items():
                command = [sys.executable, __file__, "--work", str(given.work), "--one", str(folder)]
                command += ["--grown"] if version == "grown" else []
                environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
                answer = subprocess.run(command, env=environment, check=True, capture_output=True)
                found[version].append(json.loads(answer.stdout))
        crops = {each["crops"] for version, runs in found.items() if version != "grown" for each in runs}
        assert len(crops) == 1, "other crops are drawn"
        for version, runs in found.items():
            medians = {
                key: statistics.median(run[key] for run in runs) for key in ("cpu_seconds", "peak_mb", "kept_mb")
            }
            print(f"{scans:,} scans, {version}: {medians}", flush=True)
        result[f"{scans} scans"] = found
    record("plan_grown" if given.grown else "plan_scale", result)


if __name__ == "__main__":
    main()
