"""What one GPU does with scanfoundry, in at most eight minutes: steps, memory, kill and resume, loader, fine-tuning.

command: python benchmarks/gpu.py [--device cuda|cpu] [--small] [--minutes 8] [--only NAME ...] [--out FOLDER]
         python benchmarks/gpu.py --list
         python benchmarks/gpu.py --estimate

Parts run one after the other, what is most worth knowing first, each guarded. One that fails is a line with its error,
one that needs more memory than there is says how much, and one for which the time no longer suffices is left out.
After each part `gpu.json` and `gpu_table.md` are written into FOLDER (benchmarks/results): a kill loses nothing.
Without a GPU everything is small. --estimate counts memory and operations of the steps without a GPU
(`gpu_estimates.json`). README.md says how to take the project to a machine without a network.
The exit code is 1 if a part failed.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from gpus.budget import run_parts
from gpus.page import line, markdown
from gpus.parts import Outcome, Part, Setting
from gpus.table import named, table
from record import RESULTS, record

NAME = "gpu"


def options(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--small", action="store_true", help="tiny networks, crops and data; always on a CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these parts, in the table's order")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--commit", help="of the code, where it lies in no git checkout")
    parser.add_argument("--list", action="store_true", help="print the parts and end")
    parser.add_argument("--estimate", action="store_true", help="count memory and operations, run nothing")
    given = parser.parse_args(words)
    if given.device is None and not (given.list or given.estimate):
        import torch

        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    given.small = given.small or given.device == "cpu"
    return given


def main() -> int:
    """Run what is asked for; the exit code."""
    given = options()
    parts = named(table(), given.only)
    if given.list:
        for part in parts:
            print(f"{part.name:24} {part.seconds:4.0f} s  {part.what}")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    if given.estimate:
        from gpus.estimates import estimates

        record(f"{NAME}_estimates", estimates(given.only), given.out, given.commit)
        return 0
    with tempfile.TemporaryDirectory(prefix="scanfoundry-gpu-", ignore_cleanup_errors=True) as work:
        setting = Setting(given.device, given.small, Path(work))

        def report(part: Part, outcome: Outcome, found: dict[str, Outcome]) -> None:
            print(line(part, outcome), flush=True)
            write(given, parts, found)

        found = run_parts(parts, setting, table, 60 * given.minutes, report)
    for name, outcome in found.items():
        if outcome.traceback:
            print(f"\n{name}\n{outcome.traceback}", file=sys.stderr)
    print(f"written: {given.out}/{NAME}.json, {NAME}_table.md")
    return 1 if any(outcome.status == "failed" for outcome in found.values()) else 0


def write(given: argparse.Namespace, parts: list[Part], found: dict[str, Outcome]) -> None:
    """The results until now, as JSON and as a table."""
    settings = {"device": given.device, "small": given.small, "minutes": given.minutes}
    pages = {name: outcome.page() for name, outcome in found.items()}
    record(NAME, {"settings": settings, "parts": pages}, given.out, given.commit, quiet=True)
    beside = given.out / f".{NAME}_table.md"
    beside.write_text(markdown(parts, found))
    os.replace(beside, given.out / f"{NAME}_table.md")


if __name__ == "__main__":
    sys.exit(main())
