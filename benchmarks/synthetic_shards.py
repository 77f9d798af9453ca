"""Data sets of noise for measurements of the loader, written without a build."""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.scan import Scan
from scanfoundry.datasets.shards import writer as writer_module
from scanfoundry.datasets.shards.encode import Codec
from scanfoundry.datasets.shards.finalize import PARTIAL, write_manifest
from scanfoundry.datasets.shards.format import SAMPLES, Manifest, ShardIndex, ShardRecord, index_name, parse
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.shards.table import rows_of, to_bytes
from scanfoundry.datasets.shards.writer import ShardWriter

MODALITY = "xr"


def data_set(folder: Path, shards: int, scans: int, side: int) -> Path:
    """A data set of `shards` shards of `scans` images of `side` x `side` voxels; made once."""
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (1, 1, side, side), np.uint8) for _ in range(shards * scans))
    return write(folder, ([next(images) for _ in range(scans)] for _ in range(shards)), "zstd")


def write(folder: Path, shards: Iterable[list[NDArray]], codec: Codec) -> Path:
    """A data set of scans (C, D, H, W), a list for each shard; made once. Each scan is a patient of its own."""
    if (folder / "manifest.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / PARTIAL).mkdir(parents=True)
    records, rows, patients = list[ShardRecord](), list[NDArray](), 0
    for number, voxels in enumerate(shards):
        with ShardWriter(folder / f"shard-{number:06d}.tar", codec) as writer:
            for each in voxels:
                patient = hashlib.sha256(str(patients).encode()).hexdigest()[:32]
                writer.add(Scan(each, (1.0, 1.0, 1.0)), f"scan-{patients}", MODALITY, patient)
                patients += 1
        assert writer.record is not None
        records.append(writer.record)
        name = index_name(writer.record.name)
        entries = parse(ShardIndex, (folder / name).read_bytes(), name).samples
        rows.append(rows_of(number, entries, [MODALITY]))
    table = to_bytes(np.concatenate(rows))
    (folder / SAMPLES).write_bytes(table)
    manifest = Manifest(
        version=2,
        tool="benchmark",
        parameters={},
        scans=patients,
        patients=patients,
        modalities={MODALITY: patients},
        samples_sha256=hashlib.sha256(table).hexdigest(),
        shards=records,
    )
    write_manifest(folder, manifest)
    return folder


def copy_without_tables(folder: Path, out: Path) -> None:
    """A copy of a data set of one shard or more, its large scans without tables of blocks; made once."""
    if (out / "manifest.json").exists():
        return
    writer_module.block_table = lambda payload: None
    shutil.rmtree(out, ignore_errors=True)
    (out / PARTIAL).mkdir(parents=True)
    data, records = DataSet(folder), list[ShardRecord]()
    for shard in data.manifest.shards:
        content = (folder / shard.name).read_bytes()
        with ShardWriter(out / shard.name, "zstd") as writer:
            for entry in data.index(shard).samples:
                payload = content[entry.offset : entry.offset + entry.length]
                writer.append(entry.scan_facts(), payload, entry.content, None)
        assert writer.record is not None
        records.append(writer.record)
    shutil.copy(folder / SAMPLES, out / SAMPLES)
    write_manifest(out, data.manifest.model_copy(update={"shards": records}))
