"""Crops per CPU second by the number of sources: small images, so that nothing but opening and looking up counts.

command: python benchmarks/many_sources.py --work runs/many_sources [--before NAMESPACE]
Batches of 64 images of 16^2, each source of 32 shards of 200; one process, and with --workers its workers too. Numbers
of sources take turns. NAMESPACE: a folder with `scanfoundry/` of another version, which is measured in turn with this
one: `git archive` of a commit, with links to its packages in a folder `scanfoundry`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from record import record

SHARDS, SCANS, SIDE, BATCH = 32, 200, 16, 64


def measure(folder: str, sources: int, workers: int, window: int, seconds: float, warm: int) -> float:
    """Crops per CPU second of this process and its workers, after `warm` batches that are not counted."""
    from scanfoundry.datasets.loader import CropLoader
    from scanfoundry.datasets.plan import DataConfig

    config = DataConfig(
        sources=[{"name": f"source{number}", "path": folder} for number in range(sources)],
        crop_2d=(SIDE, SIDE),
        batch_2d=BATCH,
        workers=workers,
        window=window,
    )
    with CropLoader(config, seed=0) as loader:
        for _ in range(warm):
            loader.crops()
        began, crops, used = time.perf_counter(), 0, cpu()
        while time.perf_counter() - began < seconds:
            loader.crops()
            crops += BATCH
        return crops / (cpu() - used)


def cpu() -> float:
    """CPU seconds of this process and the processes under it, so far."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(each.user + each.system for each in times)


def main() -> None:
    """Rounds of all numbers of sources and versions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--sources", type=int, nargs="+", default=[1, 4, 5, 16])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--warm", type=int, default=0, help="batches; 200 are two visits of each scan of one source")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help="what a child process measures")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.sources[0], given.workers, given.window, given.seconds, given.warm)))
        return
    from synthetic_shards import data_set  # not in a child, which may run another version

    folder = data_set(given.work / "images", SHARDS, SCANS, SIDE)
    versions = {"now": os.environ.get("PYTHONPATH", "")} | ({"before": str(given.before)} if given.before else {})
    found: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        for number in given.sources:
            for version, path in versions.items():
                command = [sys.executable, __file__, "--work", str(given.work), "--one", str(folder)]
                for option in ("workers", "window", "seconds", "warm"):
                    command += [f"--{option}", str(getattr(given, option))]
                environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
                answer = subprocess.run(
                    [*command, "--sources", str(number)], env=environment, check=True, capture_output=True
                )
                found.setdefault(f"{version}, {number} sources", []).append(round(json.loads(answer.stdout), 1))
    for name, values in found.items():
        print(
            f"{name:20} {statistics.median(values):9.0f} crops per CPU second ({min(values):.0f} to {max(values):.0f})"
        )
    suffix = (f"_{given.workers}_workers" if given.workers else "") + ("_again" if given.warm else "")
    record(f"many_sources{suffix}", {"crops_per_cpu_second": found})


if __name__ == "__main__":
    main()
