"""Start contenders, keep them alive, and run rounds of them in turn.

command: python -m peers.run --scans SCANS --work FOLDER --crop 96 --per-visit 4    (from benchmarks/)
The peers' own environment is PEERS_PYTHON, else ../peers-venv beside the project; see requirements.txt.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from peers.process import BENCHMARKS, Contender, environment

PYTHON = os.environ.get("PEERS_PYTHON") or str(BENCHMARKS.parents[1] / "peers-venv" / "bin" / "python")
CONTENDERS = (
    *("litdata:tensor", "litdata:zstd", "litdata:b2nd"),
    *("mosaic:ndarray", "mosaic:zstd", "mosaic:b2nd"),
    *("monai:cache", "monai:thread", "monai:persistent", "monai:plain"),
    *("webdataset:npy", "webdataset:file", "webdataset:b2nd"),
    *("blosc2:lz4hc", "blosc2:zstd"),
    *("bounds:empty", "bounds:memcpy1", "bounds:memcpy2"),
)
Triple = tuple[int, int, int]


def prepare(contender: str, scans: Path, work: Path) -> Path:
    """The contender's own form of the scans (.nii.gz or .png) in a folder under `work`; made once."""
    data = work / contender.replace(":", "-")
    if not (data / "done").exists():
        shutil.rmtree(data, ignore_errors=True)
        command = [PYTHON, "-m", "peers.contender", "prepare", contender, str(scans), str(data)]
        subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
        (data / "done").touch()
    return data


def start(
    contender: str, data: Path, crop: Triple, per_visit: int, workers: int = 2, batch: int = 8, prefetch: int = 2,
    log: Path | None = None,
) -> Contender:  # fmt: skip
    """A peer, ready for rounds. data: of `prepare`."""
    options = {"--per-visit": per_visit, "--workers": workers, "--batch": batch, "--prefetch": prefetch}
    words = [str(word) for option in options.items() for word in option]
    command = [PYTHON, "-m", "peers.contender", "serve", contender, str(data), "--crop", *map(str, crop), *words]
    return Contender(command, log)


def interleave(contenders: Mapping[str, Contender], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Crops per second by contender: `rounds` rounds of each, in turn (A B C A B C ...), after one to warm up."""
    for contender in contenders.values():
        contender.round(seconds / 2)
    result: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            result[name].append(contender.round(seconds))
    return result


def measure(
    contender: str, data: Path, crop: Triple, per_visit: int, workers: int, repeats: int, seconds: float
) -> list[float]:
    """Crops per second of one peer alone, by repetition."""
    with start(contender, data, crop, per_visit, workers) as process:
        return interleave({contender: process}, repeats, seconds)[contender]


def main() -> None:
    """Measure peers, one after another in turns, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contenders", nargs="*", default=CONTENDERS)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--crop", type=int, nargs="+", default=[96])
    for option, default in (("per-visit", 4), ("workers", 2), ("batch", 8), ("prefetch", 2), ("rounds", 5)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    crop = tuple(given.crop * (3 if len(given.crop) == 1 else 1))
    running = {}
    for name in given.contenders:
        began = time.perf_counter()
        data = prepare(name, given.scans, given.work)
        log = given.work / f"{name.replace(':', '-')}.log"
        try:
            running[name] = start(name, data, crop, given.per_visit, given.workers, given.batch, given.prefetch, log)
        except RuntimeError as error:
            print(f"{name:18} {error}", flush=True)
            continue
        print(f"{name:18} ready after {time.perf_counter() - began:.0f} s", flush=True)
    for name, speeds in interleave(running, given.rounds, given.seconds).items():
        spread = f"{min(speeds):8.1f} to {max(speeds):8.1f}"
        print(f"{name:18} {statistics.median(speeds):8.1f} crops/s (of {len(speeds)} rounds: {spread})")
    for contender in running.values():
        contender.close()


if __name__ == "__main__":
    main()
