"""Bad input through the command line: every file is stored rightly or left out with a reason; none is lost.

command: python benchmarks/bad_input.py --data DATA --work runs/bad
Builds and checks each folder of dicom_mixed, all of it together, and damaged copies of every odd file. Each file must
have one fate: a line in quarantine.jsonl, or the very scans in the shards that its reader gives now.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from record import record

from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.discovery.sources import PlannedSource, find_sources
from scanfoundry.datasets.identity import site_key
from scanfoundry.datasets.labels.label_index import open_labels
from scanfoundry.datasets.readers import ReadError, scans_of
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.shards.shard_worker import sample_key
from scanfoundry.datasets.shards.writer import content_hash

SECONDS = 900  # of a build or a check; what takes longer hangs
_SEVERAL = re.compile(r" \(\d+ files\)$")


def command(*words: str | Path) -> None:
    """One `scanfoundry data` command; it must end in time, well, and without a traceback."""
    line = [str(Path(sys.executable).with_name("scanfoundry")), "data", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), (words, done.stderr)


def hashes(source: PlannedSource) -> dict[str, str]:
    """Hash of the voxels of every scan of a source, by part."""
    return {scan.part: content_hash(scan.voxels) for scan in scans_of(source.source)}


class Account:
    """What became of every file below `folder`, whose data set is `out`."""

    def __init__(self, folder: Path, out: Path, key: bytes) -> None:
        data = DataSet(out)
        self.stored = {e.key: e.content for shard in data.manifest.shards for e in data.index(shard).samples}
        self.twins = set(self.stored.values())
        self.lines = {line.path: line for line in read_quarantine(out)}
        assert len(self.lines) == len(read_quarantine(out)), "a file has two lines"
        self.key, self.voxels = key, defaultdict[str, list[str]](list)
        self.fates = {path.relative_to(folder).as_posix(): "" for path in folder.rglob("*") if path.is_file()}
        book = open_labels([], [], False)
        planned, none = find_sources(
            [folder], key, None, book, lambda root, files: find_dicom(root, files, 1, lambda *_: None)
        )
        for each in none:
            self._fate(each.path, f"{each.kind}: {each.reason}")
        for each in planned:
            self._source(each)
        assert not self.lines, f"lines of no file: {sorted(self.lines)}"
        lost = [name for name, fate in self.fates.items() if not fate]
        assert not lost, f"lost: {lost}"

    def _fate(self, name: str, fate: str) -> None:
        assert self.fates[name] == "", f"{name} is both '{self.fates[name]}' and '{fate}'"
        self.fates[name] = fate
        if ": " in fate:
            line = self.lines.pop(name)
            assert f"{line.kind}: {line.reason}" == fate, f"{name}: '{line.reason}' in the build, '{fate}' now"

    def _source(self, planned: PlannedSource) -> None:
        first, *others = planned.source.files
        line = self.lines.get(first)
        try:
            if line is not None and "the process that read it died" in line.reason:
                raise ReadError(_SEVERAL.sub("", line.reason))
            found = hashes(planned)
        except ReadError as error:
            several = f" ({1 + len(others)} files)" if others else ""
            self._fate(first, f"{'refused' if line is None else line.kind}: {error}{several}")
            for name in others:
                self._fate(name, "refused with its series")
            return
        assert found, f"{first} gives no scan and no reason"
        for part, content in found.items():
            name = f"{first} ({part})" if part else first
            if name in self.lines:
                assert self.lines.pop(name).kind == "duplicate", name
                assert content in self.twins, f"{name} has no twin in the shards"
            else:
                assert self.stored[sample_key(self.key, planned, part)] == content, f"{name} is stored otherwise"
            self.voxels[first].append(content)
        for name in planned.source.files:
            self._fate(name, "stored")


def built(name: str, folder: Path, work: Path, key_file: Path) -> tuple[Account, dict[str, Any]]:
    """`folder` built, checked and accounted for; and the row of the table."""
    out = work / "out" / name
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    command("build", folder, "--out", out, "--max-bad", "1.0", "--key-file", key_file)
    seconds = time.monotonic() - started
    command("check", out)
    account = Account(folder, out, site_key(key_file))
    reasons = Counter(re.sub(r"(?<![a-z])\d+(\.\d+)?", "N", fate) for fate in account.fates.values())
    kinds = Counter(fate.split(":")[0].split(" ")[0] for fate in account.fates.values())
    row = {"files": len(account.fates), **{kind: kinds[kind] for kind in ("stored", "skipped", "refused")}}
    print(f"{name:24} {' '.join(f'{number:8}' for number in row.values())} {seconds:8.1f} s", flush=True)
    return account, {**row, "seconds": round(seconds, 1), "reasons": dict(sorted(reasons.items()))}


def damage(content: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """`content` cut (then True) or with bytes changed, somewhere or in its header."""
    if rng.random() < 0.4 or not content:
        return content[: rng.randrange(len(content) or 1)], True
    changed = bytearray(content)
    end = len(changed) if rng.random() < 0.5 else min(len(changed), 2048)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(end)] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed), False


def damaged(odd: list[Path], folder: Path, copies: int) -> set[str]:
    """Damaged copies of all files of the folders `odd`, below `folder`/0, 1, ...; the names of those that were cut."""
    cut: set[str] = set()
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(copies):
        for path in sorted(path for each in odd for path in each.rglob("*") if path.is_file()):
            name = f"{number}/{path.relative_to(odd[0].parent).as_posix()}"
            content, short = damage(path.read_bytes(), random.Random(name))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            cut |= {name} if short else set()
    return cut


def main() -> None:
    """Build, account, print the table, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=10, help="damaged copies of every odd file")
    given = parser.parse_args()
    mixed, key_file = given.data / "dicom_mixed", given.work / "site.key"
    print(f"{'':24} {'files':>8} {'stored':>8} {'skipped':>8} {'refused':>8}")
    folders = {path.name: path for path in sorted(mixed.iterdir()) if path.is_dir()}
    result = {}
    for name, folder in {**folders, "all": mixed}.items():
        account, result[name] = built(name, folder, given.work, key_file)
    odd = [folder for name, folder in folders.items() if name.startswith("odd_")]
    cut = damaged(odd, given.work / "damaged", given.copies)
    _, result["damaged, together"] = built("damaged, together", given.work / "damaged", given.work, key_file)
    for number in range(given.copies):
        title = f"damaged, copy {number}"
        copy, result[title] = built(title, given.work / "damaged" / str(number), given.work, key_file)
        # A file that was cut may be stored only if nothing of its image was lost.
        for name, voxels in copy.voxels.items():
            whole = account.voxels.get(name, voxels)
            assert f"{number}/{name}" not in cut or voxels == whole, f"{number}/{name} is stored in part"
    for kind, number in sorted(Counter(fate for row in result.values() for fate in row["reasons"]).items()):
        print(f"  {kind} (in {number} data sets)")
    record("bad_input", result)


if __name__ == "__main__":
    main()
