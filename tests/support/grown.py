"""Data sets without scans in their shards, which grow: all that a sampling plan reads of them is there."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.shards.format import (
    MANIFEST,
    Manifest,
    NearDuplicateRecord,
    ParentRecord,
    ShardRecord,
    to_json,
)
from scanfoundry.datasets.shards.table import ROW, found_later, to_bytes

BYTES = 10240  # of a shard
MODALITIES = ["mr", "xr"]
Shard = list[bool]  # for each of its scans, whether it is an image


def patient(number: int, study: bool = False) -> str:
    """The hash of a patient, or of one of the patient's studies."""
    return hashlib.sha256(f"{number} {study}".encode()).hexdigest()[:32]


def grow(
    folder: Path,
    shards: Sequence[Shard],
    later: Mapping[int, list[str]] | None = None,
    near: str | None = None,
) -> str:
    """Write a data set with these shards; one that is in the folder becomes its parent. Returns the manifest's sha256.

    Args:
        folder: of the data set.
        shards: all of them, those of the parent too. Two scans that follow each other are one patient's.
        later: patients under whom rows were found again.
        near: the content of near_duplicates.csv.
    """
    folder.mkdir(exist_ok=True)
    records, rows, parent = [], [], None
    for number, shard in enumerate(shards):
        name, flat = f"shard-{number:06d}.tar", sum(shard)
        (folder / name).touch()
        os.truncate(folder / name, BYTES)
        counts = {key: count for key, count in (("mr", len(shard) - flat), ("xr", flat)) if count}
        records.append(
            ShardRecord(
                name=name, bytes=BYTES, sha256="0" * 64, index_sha256="0" * 64, samples=len(shard), modalities=counts
            )
        )
        for sample, image in enumerate(shard):
            who = patient(len(rows) // 2)
            study = patient(len(rows) // 2, True)
            rows.append((number, sample, 9, image, int(image), fraction(who), who.encode(), study.encode()))
    if (folder / MANIFEST).exists():
        content = (folder / MANIFEST).read_bytes()
        before = Manifest.model_validate_json(content)
        generation = 0 if before.parent is None else int(before.parent.file[9:15]) + 1
        parent = ParentRecord(
            file=f"manifest-{generation:06d}.json", sha256=hashlib.sha256(content).hexdigest(),
            scans=before.scans, shards=len(before.shards),
        )  # fmt: skip
        (folder / parent.file).write_bytes(content)
    suffix = "" if parent is None else f"-{int(parent.file[9:15]) + 1:06d}"
    table = to_bytes(found_later(np.array(rows, ROW), 0, later or {}))
    (folder / f"samples{suffix}.npy").write_bytes(table)
    duplicates = None
    if near is not None:
        (folder / f"near_duplicates{suffix}.csv").write_text(near)
        digest = hashlib.sha256(near.encode()).hexdigest()
        duplicates = NearDuplicateRecord(file=f"near_duplicates{suffix}.csv", scans=1, others=0, sha256=digest)
    manifest = Manifest(
        version=2, tool="test", parameters={}, scans=len(rows), patients=len(rows), samples=f"samples{suffix}.npy",
        modalities=dict.fromkeys(MODALITIES, 1), samples_sha256=hashlib.sha256(table).hexdigest(), shards=records,
        later=dict(later or {}), also=sorted({each for found in (later or {}).values() for each in found}),
        parent=parent, near_duplicates=duplicates,
    )  # fmt: skip
    content = to_json(manifest)
    (folder / MANIFEST).write_bytes(content)
    return hashlib.sha256(content).hexdigest()
