"""A contender in a process and an environment of its own.

python -m peers.contender prepare NAME SCANS OUT
python -m peers.contender serve NAME DATA --crop D H W --per-visit N --workers N --batch N --prefetch N
NAME is module:variant, as `litdata:tensor`. SCANS is a folder of .nii.gz or .png. `serve` speaks protocol.py.
"""

import argparse
import importlib
from pathlib import Path

import torch
from peers.common import Request
from peers.protocol import BatchRounds, Rounds, serve


def touch(batch: torch.Tensor) -> int:
    """Read one voxel of each crop."""
    return int(batch[:, 0, 0, 0, 0].sum())


def build(name: str, request: Request) -> Rounds:
    """The loader of a contender, its first batch looked at."""
    module_name, _, variant = name.partition(":")
    module = importlib.import_module(f"peers.{module_name}_peer")
    if variant not in module.VARIANTS:
        raise ValueError(f"{module_name} has {', '.join(module.VARIANTS)}, not {variant!r}")
    if variant.startswith("memcpy"):
        return module.Copies(request, int(variant[-1]))
    stream = module.batches(request, variant)
    first = next(stream)
    if tuple(first.shape) != (request.batch, 1, *request.crop) or first.dtype not in (torch.int16, torch.uint8):
        raise ValueError(f"{name} delivers {tuple(first.shape)} {first.dtype}")
    return BatchRounds(stream, request.batch, request.ahead, request.workers, touch)


def main() -> None:
    """Prepare or serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("prepare", "serve"))
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--crop", type=int, nargs=3)
    for option, default in (("per-visit", 4), ("workers", 2), ("batch", 8), ("prefetch", 2)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "prepare":
        module_name, _, variant = given.name.partition(":")
        scans = sorted(path for path in given.folder.iterdir() if path.name.endswith((".nii.gz", ".png")))
        given.out.mkdir(parents=True, exist_ok=True)
        importlib.import_module(f"peers.{module_name}_peer").prepare(scans, given.out, variant)
        return
    request = Request(given.folder, tuple(given.crop), given.per_visit, given.workers, given.batch, given.prefetch)
    serve(lambda: build(given.name, request))


if __name__ == "__main__":
    main()
