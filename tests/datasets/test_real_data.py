"""Real scans, voxel for voxel, against the readers that everybody uses."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.reader import DataSet, ShardReader


def scans_by_key(folder: Path) -> dict[str, np.ndarray]:
    data, scans = DataSet(folder), {}
    for shard in data.manifest.shards:
        reader = ShardReader(folder, shard)
        scans |= {entry.key: reader.read(number) for number, entry in enumerate(reader.entries)}
    return scans


def built(source: Path, out: Path, key_file: Path) -> dict[str, np.ndarray]:
    """Every scan of `source` by its relative path, after a build."""
    summary = build([source], out, BuildOptions(key_file=key_file, shard_mb=4, workers=2, codec="lz4hc"))
    paths = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*.*"))]
    assert summary.sources == len(paths)
    assert summary.scans + summary.quarantined.pop("duplicate", 0) == len(paths)
    assert summary.quarantined == {}
    twins = {line.path: line.reason.removeprefix("has the same voxels as ") for line in read_quarantine(out)}
    scans = scans_by_key(out)
    return {path: scans[keyed_hash(site_key(key_file), "scan", twins.get(path, path))[:20]] for path in paths}


def test_hippocampus_equals_nibabel(real_data: Path, tmp_path: Path, key_file: Path) -> None:
    source = real_data / "msd_task04_hippocampus" / "imagesTr"
    scans = built(source, tmp_path / "out", key_file)
    assert len(scans) == check(tmp_path / "out", tmp_path / "sheet.png").scans == 195
    for path, voxels in scans.items():
        image = nib.load(source / path)
        expected = np.asanyarray(image.dataobj)
        assert voxels.dtype == expected.dtype.newbyteorder("=")
        assert np.array_equal(voxels[0], expected.T), path


@pytest.mark.parametrize("folder", ["busi_breast_ultrasound", "nih_chestxray8_2class"])
def test_images_equal_pillow(real_data: Path, tmp_path: Path, key_file: Path, folder: str) -> None:
    source = real_data / folder / "images"
    scans = built(source, tmp_path / "out", key_file)
    for path, voxels in scans.items():
        assert np.array_equal(voxels[0, 0], np.asarray(Image.open(source / path))), path
