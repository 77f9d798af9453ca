"""A build's worker holds fewer than three volumes at a time: measured as the peak of a process that does its work."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scanfoundry.datasets.discovery.sources import PlannedSource, ShardPlan
from scanfoundry.datasets.labels import LabelRef
from scanfoundry.datasets.readers import file_source
from scanfoundry.datasets.shards.shard_worker import PARTIAL, ShardTask, worker

SIDE = 192
STATUS = Path("/proc/self/status")
MB = 2**20
BESIDES = 20 * MB  # what is sampled of a volume, and what stays in pools: the same for volumes of any size

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="peaks are read from /proc")


def peak() -> int:
    """Bytes that this process held at most. Not `ru_maxrss`: that of the parent is inherited."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measured(folder: Path, warm: list[str], names: list[str], masks: bool) -> dict[str, int]:
    """Peaks after a small shard, by which everything is imported, and after one of the files `names`."""
    (folder / "out" / PARTIAL).mkdir(parents=True)
    run = worker(None)  # type: ignore[arg-type]
    peaks = []
    for number, files in enumerate((warm, names)):
        planned = []
        for each in files:
            ref = LabelRef(mask=folder / "masks" / each) if masks else None
            planned.append(PlannedSource(file_source(folder / "in", each), f"{len(planned):032x}", "0" * 32, ref))
        job = ShardTask(ShardPlan(f"shard-{number:06d}.tar", planned), folder / "out", b"k" * 32, "mr", "zstd")
        *_, result = run(job)
        assert result.quarantine == []
        peaks.append(peak())
    return {"before": peaks[0], "after": peaks[1], "scans": len(result.paths)}


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """(x, y, z) of a body with some noise, 0 to 4095."""
    rng = np.random.default_rng(0)
    coarse = ndimage.zoom(rng.random((6, 6, 6)), SIDE / 6, order=1)
    return (3900 * coarse + rng.normal(0, 20, coarse.shape)).clip(0, 4095).astype(np.uint16)


Measure = Callable[..., dict[str, int]]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    def run(names: list[str], masks: bool = False) -> dict[str, int]:
        small = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
        for name in ("in", "masks"):
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(small % 3, np.eye(4)), tmp_path / name / "warm.nii")
        warm = json.dumps(["warm.nii"])
        command = [sys.executable, __file__, str(tmp_path), warm, json.dumps(names), str(int(masks))]
        process = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return run


def save(path: Path, array: np.ndarray, slope: float | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(slope, 0 if slope else None)
    # By hand: nibabel would scale the numbers to fit the slope.
    with open(path, "wb") as stream:
        header = image.header.copy()
        header["vox_offset"] = 352
        stream.write(header.binaryblock + bytes(4))
        stream.write(array.tobytes(order="F"))


@pytest.mark.parametrize(("slope", "itemsize"), [(None, 2), (0.1, 8), (2.0**-10, 4)])
def test_a_series_is_never_in_memory_whole(
    measure: Measure, volume: np.ndarray, tmp_path: Path, slope: float | None, itemsize: int
) -> None:
    """Five volumes as integers, as float64 (as nibabel gives them) and as float32."""
    count = 5
    save(tmp_path / "in" / "a.nii", np.stack([volume + number for number in range(count)], axis=3), slope)
    found = measure(["a.nii"])
    of_one = SIDE**3 * itemsize
    used = found["after"] - found["before"]
    assert found["scans"] == count
    assert of_one < used < 3 * of_one + BESIDES, f"{used / of_one:.2f} volumes of {of_one / MB:.0f} MB"


def test_many_files_take_no_more_than_one(measure: Measure, volume: np.ndarray, tmp_path: Path) -> None:
    names = [f"{number}.nii" for number in range(6)]
    for number, name in enumerate(names):
        save(tmp_path / "in" / name, volume + np.uint16(number))
    found = measure(names)
    used = found["after"] - found["before"]
    of_one = volume.nbytes
    assert of_one < used < 3 * of_one + BESIDES, f"{used / of_one:.2f} volumes of {of_one / MB:.0f} MB"


def test_a_mask_comes_on_top(measure: Measure, volume: np.ndarray, tmp_path: Path) -> None:
    names = [f"{number}.nii" for number in range(3)]
    for number, name in enumerate(names):
        save(tmp_path / "in" / name, volume + np.uint16(number))
        save(tmp_path / "masks" / name, (volume > 2000).astype(np.uint8))
    found = measure(names, masks=True)
    used = found["after"] - found["before"]
    of_one = volume.nbytes + SIDE**3
    assert of_one < used < 3 * of_one + BESIDES, f"{used / of_one:.2f} volumes and masks of {of_one / MB:.0f} MB"


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(measured(Path(given[0]), json.loads(given[1]), json.loads(given[2]), given[3] == "1")))
