"""Damage inside a large scan: its crops there are replaced and counted, and a run that continues draws the same."""

import hashlib
from pathlib import Path

import numpy as np
from streams import digest

from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Position
from scanfoundry.datasets.readers.scan import Scan
from scanfoundry.datasets.shards.blocks import block_table
from scanfoundry.datasets.shards.format import MANIFEST, SAMPLES, Manifest, to_json
from scanfoundry.datasets.shards.reader import ShardReader
from scanfoundry.datasets.shards.table import rows_of, to_bytes
from scanfoundry.datasets.shards.writer import ShardWriter


def data_set(folder: Path, scans: int) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "shard-000000.tar", "zstd") as writer:
        for number in range(scans):
            voxels = rng.integers(-500, 500, (1, 70, 90, 130)).astype(np.int16)
            writer.add(Scan(voxels, (1.0, 1.0, 1.0)), f"s{number}", "ct", f"{number:032x}")
    record = writer.record
    assert record is not None
    table = to_bytes(rows_of(0, ShardReader(folder, record).entries, ["ct"]))
    (folder / SAMPLES).write_bytes(table)
    manifest = Manifest(
        version=2,
        tool="",
        parameters={},
        scans=scans,
        patients=scans,
        modalities={"ct": scans},
        samples_sha256=hashlib.sha256(table).hexdigest(),
        shards=[record],
    )
    (folder / MANIFEST).write_bytes(to_json(manifest))


def test_the_stream_does_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    data_set(tmp_path, 3)
    config = DataConfig(
        sources=[{"name": "ct", "path": tmp_path}], crop_3d=(24, 24, 24), batch_3d=2, workers=0, ring=2,
        bad_sample_ceiling=0.5,
    )  # fmt: skip
    with CropLoader(config, seed=0) as loader:
        before = [digest(next(loader)) for _ in range(24)]
        entry = loader._pool._reader._readers[0, 0].entries[1]
    with open(tmp_path / "shard-000000.tar", "r+b") as stream:
        stream.seek(entry.offset)
        payload = stream.read(entry.length)
        table = block_table(payload)
        assert table is not None
        for block in range(8):  # of the first chunk
            stream.seek(entry.offset + int(table.places[0, 0, block]) + 20)
            stream.write(b"\x5a\xa5\x5a")
    states, damaged = [], []
    with CropLoader(config, seed=0) as loader:
        for _ in range(24):
            states.append(loader.state())
            damaged.append(digest(next(loader)))
        assert loader.stats()["bad_samples"] == 1
    changed = [step for step, (one, other) in enumerate(zip(before, damaged, strict=True)) if one != other]
    assert 0 < len(changed) < 16  # a third of 48 crops is of that scan, and some of them lie elsewhere in it
    for step in (changed[0] + 1, 12, 20):
        with CropLoader(config, seed=0, position=Position.of(states[step], 0)) as loader:
            assert [digest(next(loader)) for _ in range(24 - step)] == damaged[step:]
