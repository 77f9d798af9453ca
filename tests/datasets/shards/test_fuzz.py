"""Damage of any kind, also with checksums that fit it: a clear error or the right voxels, and never anything else."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal.isal_zlib import crc32

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels import Box, Labels
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.encode import encode
from scanfoundry.datasets.shards.format import (
    MANIFEST,
    NEAR_DUPLICATES,
    SAMPLES,
    VERSION,
    Manifest,
    ShardIndex,
    ShardRecord,
    to_json,
)
from scanfoundry.datasets.shards.near_list import NearDuplicate, write_near_duplicates
from scanfoundry.datasets.shards.reader import BadSample, DataSet, ShardReader
from scanfoundry.datasets.shards.table import rows_of, to_bytes
from scanfoundry.datasets.shards.writer import ShardWriter

bounded = settings(max_examples=60, deadline=None, derandomize=True)
Truth = dict[str, tuple[np.ndarray, np.ndarray | None]]
# (what, where, bytes): `where` counts in 1/2**16 of the length, so that shrinking keeps its sense.
Change = tuple[str, int, bytes]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "cut out", "insert", "end"]),
        st.integers(0, 2**16 - 1),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=3,
)
# In place of any value in a JSON file.
VALUES: list[Any] = [
    *(None, True, "", "x", "a" * 40, "../../x.tar", "\udc80", [], {}, [1], {"a": 1}, float("nan"), float("inf")),
    *(0, -1, 1, 2, 3, 255, 512, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, -1e308, 1e308),
    *("uint8", "int16", "float16", "float64", "0" * 32, "f" * 64, "shard-000000.tar", "gA=="),
]


def changed(content: bytes, changes: list[Change]) -> bytes:
    data = bytearray(content)
    for what, where, some in changes:
        place = where * max(1, len(data)) >> 16
        if what == "set":
            data[place : place + len(some)] = some
        elif what == "flip" and data:
            data[place] ^= 1 << some[0] % 8
        elif what == "cut out":
            del data[place : place + some[0]]
        elif what == "insert":
            data[place:place] = some
        elif what == "end":
            del data[place:]
    return bytes(data)


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


def edited(content: bytes, where: int, value: Any, remove: bool) -> bytes:
    """JSON with one of its values replaced or left out."""
    tree = json.loads(content)
    paths = [path for path in leaves(tree) if path]
    *above, last = paths[where % len(paths)]
    node = tree
    for key in above:
        node = node[key]
    if remove:
        del node[last]
    else:
        node[last] = value
    return json.dumps(tree, separators=(",", ":")).encode()


EDITS = st.tuples(st.integers(0, 2**16), st.sampled_from(VALUES), st.booleans())


@pytest.fixture(scope="module")
def truth() -> Truth:
    rng = np.random.default_rng(0)
    scans: Truth = {}
    for number, kind in enumerate(["uint8", "int16", "float32", "float64", "int32", "uint16"]):
        shape = (1, 1, 20, 22) if number % 2 else (1, 7, 12, 14)
        voxels = rng.integers(0, 200, shape).astype(kind)
        if kind == "float32":
            voxels = np.sqrt(voxels % 50)
        mask = rng.integers(0, 3, shape[1:]).astype(np.uint8) if number < 3 else None
        scans[f"scan{number}"] = voxels, mask
    return scans


@pytest.fixture(scope="module")
def whole(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two shards."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    folder.mkdir()
    records, keys = [], list(truth)
    for number in range(2):
        with ShardWriter(folder / f"shard-{number:06d}.tar", "zstd") as writer:
            for key in keys[3 * number : 3 * number + 3]:
                voxels, mask = truth[key]
                known = Labels(mask=mask, boxes=(Box((0, 1, 2), (1, 5, 6)),), classes={"a": "b"}, targets={"c": 1.5})
                patient = hashlib.md5(key.encode()).hexdigest()
                writer.add(Scan(voxels, (1.0, 2.0, 3.0)), key, ("mr", "ct")[number], patient, known)
        assert writer.record is not None
        records.append(writer.record)
    write_manifest(folder, records)
    assert check(folder).scans == 6
    return folder


def write_manifest(folder: Path, records: list[ShardRecord]) -> None:
    readers = [ShardReader(folder, record) for record in records]
    table = to_bytes(np.concatenate([rows_of(n, each.entries, ["ct", "mr"]) for n, each in enumerate(readers)]))
    (folder / SAMPLES).write_bytes(table)
    manifest = Manifest(
        version=VERSION,
        tool="scanfoundry",
        parameters={"site": "a", "modality": "mr"},
        scans=6,
        patients=6,
        modalities={"ct": 3, "mr": 3},
        samples_sha256=hashlib.sha256(table).hexdigest(),
        near_duplicates=write_near_duplicates(folder, [NearDuplicate("scan4", "scan0", 0.973, False, 4, 0)]),
        shards=records,
    )
    (folder / MANIFEST).write_bytes(to_json(manifest, indent=1))


@pytest.fixture(scope="module")
def damage(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes], Path]:
    """A copy in which a file has another content; all others are those of `whole` again."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "set"))
    touched = {MANIFEST}  # by `signed`

    def write(name: str, content: bytes) -> Path:
        for each in touched:
            shutil.copyfile(whole / each, folder / each)
        touched.add(name)
        (folder / name).write_bytes(content)
        return folder

    return write


def signed(folder: Path, **fields: Any) -> Path:
    """The manifest with these fields; those of the first shard with `shard_` before their name."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for name, value in fields.items():
        where = manifest["shards"][0] if name.startswith("shard_") else manifest
        where[name.removeprefix("shard_")] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def in_one_line(error: Exception, name: str = "") -> None:
    assert "\n" not in str(error)
    assert name in str(error)


def used(folder: Path, truth: Truth) -> None:
    """Everything that can be done with a data set: right voxels, or UserError and BadSample only."""
    for work in (read_all, checked, sampled):
        try:
            work(folder, truth)
        except (UserError, BadSample) as error:
            in_one_line(error)


def checked(folder: Path, truth: Truth) -> None:
    report = check(folder)
    assert report.scans == 6


def read_all(folder: Path, truth: Truth) -> None:
    data = DataSet(folder)
    data.samples()
    for shard in data.manifest.shards:
        reader = ShardReader(folder, shard)
        for number, entry in enumerate(reader.entries):
            try:
                whole, mask = reader.read(number), reader.read_mask(number)
                part = reader.read(number, (slice(0, 1), slice(2, 9), slice(3, 11)))
            except BadSample as error:
                in_one_line(error, shard.name)
                continue
            if entry.key in truth and whole.dtype == truth[entry.key][0].dtype:
                assert np.array_equal(whole, truth[entry.key][0])
                assert np.array_equal(part, whole[:, :1, 2:9, 3:11])
                assert mask is None or np.array_equal(mask, truth[entry.key][1])
        reader.close()


def sampled(folder: Path, truth: Truth) -> None:
    config = DataConfig(
        sources=[{"name": "a", "path": folder, "flip_axes": [0, 1], "near_duplicates": "drop"}],
        crop_2d=(8, 8),
        crop_3d=(4, 8, 8),
        batch_2d=2,
        batch_3d=2,
        workers=0,
        ring=2,
        bad_sample_ceiling=1.0,
    )
    with CropLoader(config, seed=0) as loader:
        for _ in range(4):
            batch = next(loader)
            assert batch.voxels.shape[1] == 1


@bounded
@given(data=st.data())
def test_any_file_with_any_damage(damage: Callable, whole: Path, truth: Truth, data: st.DataObject) -> None:
    names = [MANIFEST, SAMPLES, NEAR_DUPLICATES, "shard-000000.tar", "shard-000000.idx.json"]
    name = data.draw(st.sampled_from(names))
    used(damage(name, changed((whole / name).read_bytes(), data.draw(CHANGES))), truth)


@settings(parent=bounded, max_examples=150)
@given(edit=EDITS)
def test_any_value_in_the_manifest(damage: Callable, whole: Path, truth: Truth, edit: tuple[int, Any, bool]) -> None:
    """No checksum protects it."""
    folder = damage(MANIFEST, edited((whole / MANIFEST).read_bytes(), *edit))
    used(folder, truth)


def test_check_tells_every_change_of_the_manifest(damage: Callable, whole: Path) -> None:
    content = (whole / MANIFEST).read_bytes()
    free = {"tool", "parameters"}
    changes: dict[str, Any] = {
        "scans": 7,
        "patients": 7,
        "also": ["0" * 32],
        "modalities": {"ct": 3, "mq": 3},
        "warnings": {"face": 1},
        "greys": {"cut": 1},
        "later": {0: ["0" * 32]},
        "samples": "samples-000001.npy",
        "samples_sha256": "0" * 64,
        "sources": {"sha256": "0" * 64},
        "parent": {"file": "manifest-000000.json", "sha256": "0" * 64, "scans": 1, "shards": 1},
        "near_duplicates": {"scans": 1, "others": 1, "sha256": "0" * 64},
        "shards": [],
        "version": 3,
    }
    assert changes.keys() | free == set(Manifest.model_fields)
    for name, value in changes.items():
        with pytest.raises(UserError):
            check(signed(damage(MANIFEST, content), **{name: value}))
    of_shard: dict[str, Any] = {
        "name": "shard-000001.tar",
        "bytes": 10240,
        "sha256": "0" * 64,
        "index_sha256": "0" * 64,
        "samples": 2,
        "modalities": {"ct": 3},
    }
    assert of_shard.keys() == ShardRecord.model_fields.keys()
    for name, value in of_shard.items():
        with pytest.raises(UserError):
            check(signed(damage(MANIFEST, content), **{f"shard_{name}": value}))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # levels of 1e308 in a scan of float32
@settings(parent=bounded, max_examples=150)
@given(edit=EDITS)
def test_an_index_that_somebody_signed(
    damage: Callable, whole: Path, truth: Truth, edit: tuple[int, Any, bool]
) -> None:
    name = "shard-000000.idx.json"
    content = edited((whole / name).read_bytes(), *edit)
    folder = damage(name, content)
    signed(folder, shard_index_sha256=hashlib.sha256(content).hexdigest())
    for work in (check, lambda folder: sampled(folder, truth), lambda folder: touched(folder)):
        try:
            work(folder)
        except (UserError, BadSample) as error:
            in_one_line(error)


def touched(folder: Path) -> None:
    """Reads what can be read; what it holds is the signer's."""
    data = DataSet(folder)
    reader = ShardReader(folder, data.manifest.shards[0])
    for number in range(len(reader.entries)):
        for work in (reader.read, reader.read_mask, reader.labels):
            try:
                work(number)
            except BadSample as error:
                in_one_line(error)


@settings(parent=bounded, max_examples=80)
@given(changes=CHANGES, blocks=st.booleans())
def test_a_tar_that_somebody_signed(
    damage: Callable, whole: Path, truth: Truth, changes: list[Change], blocks: bool
) -> None:
    name = "shard-000000.tar"
    content = (whole / name).read_bytes()
    if blocks:  # in the headers, not in the voxels
        head = changed(content[:512], [change for change in changes if change[0] in ("set", "flip")])[:512]
        content = with_checksum(head) + content[512:]
    else:
        content = changed(content, changes)
    folder = damage(name, content)
    if content:
        signed(folder, shard_sha256=hashlib.sha256(content).hexdigest(), shard_bytes=len(content))
    used(folder, truth)


def with_checksum(header: bytes) -> bytes:
    total = sum(header[:148]) + sum(header[156:512]) + 8 * 32
    return header[:148] + b"%06o\0 " % total + header[156:]


@bounded
@given(changes=CHANGES)
def test_a_table_that_somebody_signed(damage: Callable, whole: Path, truth: Truth, changes: list[Change]) -> None:
    content = changed((whole / SAMPLES).read_bytes(), changes)
    folder = damage(SAMPLES, content)
    used(signed(folder, samples_sha256=hashlib.sha256(content).hexdigest()), truth)


KINDS = {  # of frames: one block, nothing but zeros, several blocks, more bytes than are read at once
    "block": ((1, 8, 20, 22), 0),
    "zeros": ((1, 8, 20, 22), 0),
    "blocks": ((1, 70, 66, 65), 1),
    "large": ((1, 40, 90, 100), 0),
}


def voxels_of(kind: str) -> np.ndarray:
    shape, smooth = KINDS[kind]
    rng = np.random.default_rng(0)
    array = rng.normal(0, 30, shape) if not smooth else rng.integers(0, 2, shape)
    return (array * (kind != "zeros")).astype(np.int16)


def shard_of(folder: Path, facts: dict[str, Any], payload: bytes) -> ShardReader:
    """A shard of one scan whose checksums fit `payload`, whatever that is."""
    content = bytes(512) + payload + bytes(1024)
    facts = facts | {"offset": 512, "length": len(payload), "crc32": crc32(payload), "mask": None}
    index = to_json(ShardIndex.model_validate_json(json.dumps({"version": VERSION, "samples": [facts]})))
    (folder / "s.tar").write_bytes(content)
    (folder / "s.idx.json").write_bytes(index)
    record = ShardRecord(
        name="s.tar",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
        samples=1,
        modalities={"mr": 1},
    )
    return ShardReader(folder, record)


def facts_of(folder: Path, voxels: np.ndarray) -> dict[str, Any]:
    with ShardWriter(folder / "own.tar", "zstd") as writer:
        writer.add(Scan(voxels, (1.0, 1.0, 1.0)), "a", "mr", "0" * 32)
    return json.loads((folder / "own.idx.json").read_bytes())["samples"][0]


def hostile(payload: bytes, seed: int) -> bytes:
    """A frame with some bytes changed, mostly in what describes it: its header, its trailer, heads of chunks."""
    chance, data = random.Random(seed), bytearray(payload)
    for _ in range(chance.choice([1, 1, 2, 4, 10])):
        near = chance.randrange(min(len(data), 400))
        place = chance.choice([near, len(data) - 1 - near, chance.randrange(len(data))])
        value = chance.choice([b"\xff\xff\xff\x7f", bytes(4), b"\xff" * 8, b"\x80", bytes([chance.randrange(256)])])
        data[place : place + len(value)] = value[: len(data) - place]
        if chance.random() < 0.1:
            data = data[: chance.randrange(1, len(data) + 1)]
    return bytes(data)


def read_hostile(folder: Path, kind: str, first: int, count: int) -> None:
    """Run in a process of its own, which blosc2 may crash."""
    blosc2.set_nthreads(1)
    voxels = voxels_of(kind)
    facts, payload = facts_of(folder, voxels), encode(voxels, "zstd").payload
    out = np.empty((1, 4, 9, 10), np.int16)
    for seed in range(first, first + count):
        print(kind, seed, flush=True)
        reader = shard_of(folder, facts, hostile(payload, seed))
        for work in (
            lambda reader=reader: reader.read_into(0, (slice(2, 6), slice(3, 12), slice(7, 17)), out),
            lambda reader=reader: reader.read(0),
        ):
            try:
                work()
            except BadSample as error:
                in_one_line(error)
        reader.close()


@pytest.mark.parametrize(("kind", "count"), [("block", 400), ("zeros", 400), ("blocks", 150), ("large", 120)])
def test_frames_that_somebody_signed_do_not_crash(tmp_path: Path, kind: str, count: int) -> None:
    command = [sys.executable, __file__, str(tmp_path), kind, "0", str(count)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    last = process.stdout.splitlines()[-1:]
    assert process.returncode == 0, f"{process.returncode} at {last}: {process.stderr[-2000:]}"
    assert len(process.stdout.splitlines()) == count


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("marker", ["LazyArray", "b2o", "proxy-source"])
def test_frames_that_want_to_run_code_are_refused(tmp_path: Path, marker: str, large: bool) -> None:
    """blosc2 can store expressions and functions in a frame, and runs them where it trusts the file."""
    voxels = voxels_of("large" if large else "block")
    trap = tmp_path / "trap"
    code = f"def f(i, o, s):\n    open({str(trap)!r}, 'w')\n"
    meta = {marker: {"kind": "lazyudf", "UDF": code, "expression": "o0 + 1", "operands": {}, "name": "f"}}
    # In blocks, so that it has to be opened.
    array = blosc2.asarray(voxels, chunks=(1, 4, 16, 16), blocks=(1, 2, 8, 8), meta=meta)
    payload = array.to_cframe()
    assert large == (len(payload) > 1 << 18)
    reader = shard_of(tmp_path, facts_of(tmp_path, voxels), payload)
    try:
        assert np.array_equal(reader.read(0), voxels)  # as plain numbers it is right
    except BadSample as error:
        in_one_line(error, "s.tar")
    assert not trap.exists()


if __name__ == "__main__":
    read_hostile(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
