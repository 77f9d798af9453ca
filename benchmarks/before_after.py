"""Building, loading and the demo of two checkouts side by side, so that a change is seen to cost nothing.

command: python benchmarks/before_after.py --before OTHER/.venv/bin/python --data DATA --work runs/pairs
Both checkouts have their own `make install`. Each job is a whole process (children included) and runs in turn in both,
the order changed every round; the figure is the median over the rounds of CPU seconds after / CPU seconds before,
so that a machine that drifts hits both. Loading apart from its start: seconds of CROPS crops minus those of one batch.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from record import record

BUILDS = {  # the words of `data build`; {data} is the folder of real scans
    "volumes with masks": "{data}/msd_task04_hippocampus/imagesTr --masks {data}/msd_task04_hippocampus/labelsTr",
    "images with masks": "{data}/busi_breast_ultrasound/images --masks {data}/busi_breast_ultrasound/masks",
    "DICOM": "{data}/dicom_mixed --max-bad 1",
}
LOAD = """
import sys
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, SourceConfig
path, kind, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
sizes = {"crop_3d": (32, 32, 32), "batch_3d": 16} if kind == "3d" else {"crop_2d": (128, 128), "batch_2d": 32}
loader = CropLoader(DataConfig(sources=[SourceConfig(name="scans", path=path)], workers=1, **sizes), seed=0)
for _ in range(batches):
    loader.crops()
loader.close()
"""
LOADS = {"volumes with masks": "3d", "images with masks": "2d"}
BATCHES = 2000


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of `command` and its children; its output only where it failed."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed:\n{said.decode(errors='replace')}")
    return usage.ru_utime + usage.ru_stime


def build(python: str, words: list[str], out: Path) -> float:
    """One build into an empty folder, in one process."""
    shutil.rmtree(out, ignore_errors=True)
    command = ["data", "build", *words, "--out", str(out), "--workers", "1", "--key-file", str(out.parent / "key")]
    return cpu_seconds([str(Path(python).parent / "scanfoundry"), *command])


def load(python: str, kind: str, shards: Path) -> float:
    """The crops of BATCHES batches, without what it takes to start."""
    return cpu_seconds([python, "-c", LOAD, str(shards), kind, str(BATCHES)]) - cpu_seconds(
        [python, "-c", LOAD, str(shards), kind, "1"]
    )


def demo(python: str, out: Path) -> float:
    """`make demo` without the installation."""
    shutil.rmtree(out, ignore_errors=True)
    return cpu_seconds([str(Path(python).parent / "scanfoundry"), "demo", "--out", str(out)])


def main() -> None:
    """Time all jobs in both checkouts and write results/before_after_<name>.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", required=True, help="the other checkout's .venv/bin/python")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="last")
    parser.add_argument("--only", default="", help="only jobs whose name holds this")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    pythons = {"before": given.before, "after": sys.executable}
    jobs = {}
    for name, words in BUILDS.items():
        filled = [word.format(data=given.data) for word in words.split()]
        jobs[f"build: {name}"] = lambda side, w=filled, n=name: build(pythons[side], w, given.work / side / n)
    for name, kind in LOADS.items():
        jobs[f"load: {name}"] = lambda side, k=kind, n=name: load(pythons[side], k, given.work / side / n)
    jobs["demo"] = lambda side: demo(pythons[side], given.work / side / "demo")
    result = {}
    for title, job in jobs.items():
        if given.only not in title:
            continue
        taken = [{side: job(side) for side in order(turn)} for turn in range(given.rounds)]
        ratios = [each["after"] / each["before"] for each in taken]
        result[title] = {
            "before_s": round(statistics.median(each["before"] for each in taken), 2),
            "after_s": round(statistics.median(each["after"] for each in taken), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
        print(title, result[title], flush=True)
    record(f"before_after_{given.name}", result)


def order(turn: int) -> list[str]:
    """Who begins changes every round."""
    return ["before", "after"] if turn % 2 == 0 else ["after", "before"]


if __name__ == "__main__":
    main()
