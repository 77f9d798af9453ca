"""Crops per second against the best public loaders, in turns in one run, with the ablation of what makes it fast.

command: python benchmarks/loader.py --data DATA --work runs/loader [--only ct mr small]
Peers run in their own environment, see peers/requirements.txt and PEERS_PYTHON. Everything delivers batches of 8 crops
in the scans' own dtype to one process, by two workers, the files in the page cache; see peers/ for what each was given.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from peers import run as peers
from peers.process import BENCHMARKS, Contender
from record import RESULTS, record
from scans import SIZES, large, small

from scanfoundry.datasets.shards.build import BuildOptions, build

CODECS = ("zstd", "lz4hc")
# The fastest way found to use each; other ways are in peers/, and were slower.
PEERS = ("litdata:tensor", "mosaic:b2nd", "monai:cache", "webdataset:b2nd", "blosc2:lz4hc", "blosc2:zstd")
BOUNDS = ("bounds:empty", "bounds:memcpy1", "bounds:memcpy2")
OURS = {
    "scanfoundry zstd": ("both", "zstd"),
    "scanfoundry lz4hc": ("both", "lz4hc"),
    "partial read alone, zstd": ("partial", "zstd"),
    "partial read alone, lz4hc": ("partial", "lz4hc"),
    "ring alone, zstd": ("ring", "zstd"),
    "ring alone, lz4hc": ("ring", "lz4hc"),
    "to float32 too, lz4hc": ("float", "lz4hc"),
}
Triple = tuple[int, int, int]


def shards(scans: Path, out: Path, codec: str, modality: str) -> Path:
    """The scans as shards of `codec`; made once."""
    build([scans], out, BuildOptions(codec=codec, modality=modality))
    return out


def ours(variant: str, data: Path, crop: Triple, per_visit: int, batch: int, prefetch: int) -> Contender:
    """scanfoundry's own process."""
    words = ["--crop", *crop, "--per-visit", per_visit, "--batch", batch, "--prefetch", prefetch]
    return Contender([sys.executable, str(BENCHMARKS / "ours.py"), "serve", variant, str(data), *map(str, words)])


def contest(
    scans: Path, work: Path, modality: str, crop: Triple, per_visit: int, batch: int, names: dict[str, list[str]],
    rounds: int, seconds: float, prefetch: int = 2,
) -> dict[str, list[float]]:  # fmt: skip
    """Rounds of all, in turn: crops per second by name."""
    running: dict[str, Contender] = {}
    try:
        for name in names["peers"]:
            data = peers.prepare(name, scans, work)
            try:
                running[name] = peers.start(name, data, crop, per_visit, batch=batch, prefetch=prefetch)
            except RuntimeError as error:
                print(f"{name} does not run here: {error}", flush=True)
        for name in names["ours"]:
            variant, codec = OURS[name]
            data = shards(scans, work / f"shards-{codec}", codec, modality)
            running[name] = ours(variant, data, crop, per_visit, batch, prefetch)
        return peers.interleave(running, rounds, seconds)
    finally:
        for process in running.values():
            process.close()


def table(title: str, speeds: dict[str, list[float]]) -> dict[str, object]:
    """Print medians and ratios; what is written."""
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    best = max((name for name in medians if name in PEERS), key=medians.__getitem__)
    copies = max((medians[name] for name in BOUNDS[1:] if name in medians), default=None)
    print(f"\n{title}: best peer {best}")
    for name in sorted(medians, key=medians.__getitem__):
        low, high, ratio = min(speeds[name]), max(speeds[name]), medians[name] / medians[best]
        line = f"  {name:28} {medians[name]:9.1f}/s ({low:.1f} to {high:.1f})  {ratio:6.2f} x best"
        print(line + (f"  {medians[name] / copies:.2f} of memcpy" if copies else ""))
    rounded = {name: [round(value, 1) for value in values] for name, values in speeds.items()}
    ratios = {name: round(medians[name] / medians[best], 2) for name in OURS if name in medians}
    result: dict[str, object] = {"best_peer": best, "per_second": rounded, "times_best_peer": ratios}
    if copies:
        result["of_memcpy"] = {name: round(medians[name] / copies, 3) for name in OURS if name in medians}
    return result


def main() -> None:
    """Large scans at 96^3 and 128^3, one and four crops per visit; small scans whole."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--count", type=int, default=6, help="large scans of each modality")
    parser.add_argument("--crops", type=int, nargs="+", default=[96, 128])
    parser.add_argument("--visits", type=int, nargs="+", default=[4, 1], help="crops per visit")
    parser.add_argument("--ablation", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", choices=("mr", "ct", "small"), nargs="+", default=["mr", "ct", "small"])
    given = parser.parse_args()
    result: dict[str, object] = {}
    for modality in [name for name in given.only if name != "small"]:
        folder = given.work / "scans" / modality
        large(given.data, folder, given.count, SIZES[modality], modality)
        for side in given.crops:
            for per_visit in given.visits:
                ablate = given.ablation and per_visit == 4 and modality == "ct"
                names = {"peers": [*PEERS, *BOUNDS], "ours": list(OURS) if ablate else list(OURS)[:2]}
                speeds = contest(folder, given.work / modality, modality, (side,) * 3, per_visit, 8, names,
                                 given.rounds, given.seconds)  # fmt: skip
                title = f"{modality} {side}^3, {per_visit} crops per visit"
                result[title] = table(title, speeds)
    if "small" in given.only:
        folders = small(given.data, given.work / "scans" / "small")
        for name, modality, crop in (("volumes", "mr", (32, 48, 32)), ("images", "us", (1, 256, 256))):
            names = {"peers": [*PEERS, "bounds:empty"], "ours": ["scanfoundry zstd", "scanfoundry lz4hc"]}
            speeds = contest(folders[name], given.work / name, modality, crop, 1, 32, names, given.rounds,
                             given.seconds)  # fmt: skip
            title = f"small {name} {crop}"
            result[title] = table(title, speeds)
    # Parts may be run one after the other.
    path = RESULTS / "loader.json"
    before = json.loads(path.read_text())["result"] if path.exists() else {}
    record("loader", before | result)


if __name__ == "__main__":
    main()
