"""A file format from a single file outside of the tree, named by SCANFOUNDRY_PLUGINS."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scanfoundry.datasets.shards.reader import DataSet, ShardReader

ROOT = Path(__file__).resolve().parents[3]
TOY = ROOT / "tests" / "plugins" / "toy_format.py"


def scanfoundry(*words: object, plugin: Path | None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "SCANFOUNDRY_PLUGINS": str(plugin or "")}
    command = [str(Path(sys.executable).with_name("scanfoundry")), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def write_toy(path: Path, seed: int) -> np.ndarray:
    voxels = np.random.default_rng(seed).integers(0, 4000, (9 + seed, 10, 11)).astype("<u2")
    path.write_bytes(f"TOY {9 + seed} 10 11 2.5 0.5 0.75\n".encode() + voxels.tobytes())
    return voxels


def tree() -> dict[str, tuple[int, int]]:
    """Size and time of every source file of the packages."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    assert len(packages) == 6
    files = [path for package in packages for path in package.rglob("*") if "__pycache__" not in path.parts]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()}


def test_a_format_of_one_file_is_built_checked_and_read_back(tmp_path: Path) -> None:
    before = tree()
    plugin = Path(shutil.copy(TOY, tmp_path / "site_format.py"))
    (tmp_path / "in").mkdir()
    written = {number: write_toy(tmp_path / "in" / f"p{number}.toy", number) for number in range(3)}
    (tmp_path / "in" / "broken.toy").write_bytes(b"TOY 9 9 9 1 1 1\nab")
    options = ("--out", tmp_path / "out", "--max-bad", 0.5, "--workers", 2, "--key-file", tmp_path / "key")
    done = scanfoundry("data", "build", tmp_path / "in", *options, plugin=plugin)
    assert done.returncode == 0, done.stderr
    assert "cut short" in (tmp_path / "out" / "quarantine.jsonl").read_text()
    checked = scanfoundry("data", "check", tmp_path / "out", plugin=None)  # shards need no reader
    assert checked.returncode == 0, checked.stderr

    data = DataSet(tmp_path / "out")
    found = {}
    for shard in data.manifest.shards:
        reader = ShardReader(tmp_path / "out", shard)
        for number, entry in enumerate(data.index(shard).samples):
            assert entry.spacing == (2.5, 0.5, 0.75)
            voxels = reader.read(number)
            found[voxels.shape[1] - 9] = voxels[0]
        reader.close()
    assert found.keys() == written.keys()
    assert all(np.array_equal(found[number], voxels) for number, voxels in written.items())
    assert tree() == before  # files touched in the packages: none


def test_without_the_plugin_nothing_reads_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_toy(tmp_path / "in" / "a.toy", 1)
    done = scanfoundry("data", "build", tmp_path / "in", "--out", tmp_path / "out", plugin=None)
    assert done.returncode == 2
    assert "1 .toy" in done.stderr


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("('toy', len, ('.nii',))", "its suffix '.nii' is of 'nifti'"),
        ("('nifti', len, ('.toy',))", "its name is taken"),
        ("('toy', 'len', ('.toy',))", "needs a name, a function"),
        ("('toy', len, '.toy')", "needs a name, a function"),
        ("('toy', len, ('.TOY',))", "needs a name, a function"),
        ("('toy', len, ())", "needs a name, a function"),
        ("5", "(name, reader, suffixes), not 5"),
    ],
)
def test_mistakes_in_an_entry_are_told_in_one_line(tmp_path: Path, entry: str, reason: str) -> None:
    (tmp_path / "odd.py").write_text(f"PLUGINS = {{'format': [{entry}]}}\n")
    code = "from scanfoundry.datasets.readers import SUFFIXES\nfrom scanfoundry.configs.errors import UserError\n"
    code += "try:\n    list(SUFFIXES)\nexcept UserError as error:\n    print(error)\n"
    environment = {**os.environ, "SCANFOUNDRY_PLUGINS": str(tmp_path / "odd.py")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert reason in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
