"""The table of all scans: it says what the indices say, and nothing that is not it passes for it."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.recfunctions import repack_fields

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.shards.format import SampleEntry, ShardRecord
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.shards.table import ROW, differs, parse_table, rows_of, to_bytes

HASHES = st.text("0123456789abcdef", min_size=32, max_size=32)
FACTS = {
    "key": "a",
    "dtype": "int16",
    "stored": "int16",
    "stats": {"min": 0.0, "max": 1.0},
    "grid": (1, 1, 1),
    "foreground": "gA==",
    "content": "0" * 32,
    "offset": 512,
    "length": 100,
    "crc32": 0,
}


def shard(name: str, samples: int) -> ShardRecord:
    return ShardRecord(
        name=f"{name}.tar",
        bytes=1,
        sha256="0" * 64,
        index_sha256="0" * 64,
        samples=samples,
        modalities={"mr": samples},
    )


@st.composite
def entries(draw: st.DrawFn) -> SampleEntry:
    shape = (1, draw(st.integers(1, 400)), 9, 9)
    people = draw(st.lists(HASHES, min_size=1, max_size=3, unique=True))
    modality, frames = draw(st.sampled_from(["ct", "mr", "us"])), draw(st.booleans())
    return SampleEntry(
        shape=shape,
        patient=people[0],
        study=draw(st.one_of(st.just(""), HASHES)),
        also=people[1:],
        modality=modality,
        frames=frames,
        **FACTS,
    )


SHARDS = st.lists(st.lists(entries(), min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SHARDS)
def test_rows_say_what_the_entries_say(shards: list[list[SampleEntry]]) -> None:
    modalities = ["ct", "mr", "us"]
    table = np.concatenate([rows_of(number, each, modalities) for number, each in enumerate(shards)])
    records = [shard(f"s{number}", len(each)) for number, each in enumerate(shards)]
    again = parse_table(to_bytes(table), "t", records, 3)
    assert again.tobytes() == table.tobytes()
    flat = [(number, sample, entry) for number, each in enumerate(shards) for sample, entry in enumerate(each)]
    for row, (number, sample, entry) in zip(again, flat, strict=True):
        assert (row["shard"], row["sample"], row["depth"]) == (number, sample, entry.shape[1])
        assert row["flat"] == (entry.frames or entry.shape[1] == 1)
        assert modalities[row["modality"]] == entry.modality
        assert (row["patient"].decode(), row["study"].decode()) == (entry.patient, entry.study)
        # Whoever of them is held out holds it out.
        for share in (0.1, 0.5, 0.9):
            held = any(fraction(patient) < share for patient in entry.all_patients())
            assert (row["least"] < share) == held


def good() -> tuple[np.ndarray, list[ShardRecord]]:
    table = np.zeros(5, ROW)
    table["shard"], table["sample"] = [0, 0, 1, 1, 1], [0, 1, 0, 1, 2]
    table["patient"] = b"0123456789abcdef" * 2
    return table, [shard("a", 2), shard("b", 3)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shard", [0, 1, 1, 1, 1]),
        ("shard", [1, 1, 0, 0, 0]),
        ("sample", [1, 0, 0, 1, 2]),
        ("sample", [0, 1, 0, 1, 3]),
        ("modality", [0, 0, 0, 0, 2]),
        ("patient", b"\xff" * 32),
        ("patient", b"0" * 31),
        ("patient", b""),
        ("study", b"\xff" * 32),
        ("study", b"0" * 31),
        ("study", b"\0" + b"0" * 31),
        ("least", float("nan")),
        ("least", -0.5),
    ],
)
def test_rows_that_cannot_be(field: str, value: object) -> None:
    table, records = good()
    assert len(parse_table(to_bytes(table), "t.npy", records, 2)) == 5
    table[field] = value
    with pytest.raises(UserError, match=r"t\.npy is damaged"):
        parse_table(to_bytes(table), "t.npy", records, 2)


def test_rows_from_before_studies_were_kept() -> None:
    table, records = good()
    names = [name for name in ROW.names or () if name != "study"]
    before = repack_fields(table[names])
    found = parse_table(to_bytes(before), "t.npy", records, 2)
    assert found.dtype.names == tuple(names)
    assert found.tobytes() == before.tobytes()
    assert not differs(found, table)
    assert not differs(table, table)
    table["patient"][3] = b"f" * 32
    assert differs(found, table)
    for fewer in (names[:-1], [*names[1:], "study"]):
        with pytest.raises(UserError, match=r"t\.npy is damaged"):
            parse_table(to_bytes(repack_fields(table[fewer])), "t.npy", records, 2)


def test_a_truth_value_that_is_neither() -> None:
    """numpy may write beyond an array where a bool is neither 0 nor 1."""
    table, records = good()
    content = bytearray(to_bytes(table))
    content[-ROW.itemsize + ROW.fields["flat"][1]] = 2  # type: ignore[index]
    with pytest.raises(UserError, match=r"t\.npy is damaged"):
        parse_table(bytes(content), "t.npy", records, 2)


def with_header(text: str) -> bytes:
    header = text.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def test_files_that_are_no_table() -> None:
    table, records = good()
    stream = io.BytesIO()
    np.savez(stream, table)
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}]), allow_pickle=True)
    fine = to_bytes(table)
    contents = {
        "empty": b"",
        "npz": stream.getvalue(),
        "pickle": pickled.getvalue(),
        "cut": fine[:-1],
        "longer": fine + b"\0",
        "other rows": to_bytes(table[:4]),
        "other type": to_bytes(np.zeros(5, [("shard", "<u4")])),
        "brackets": with_header("(" * 110),
        "no end": with_header("{'descr': '''"),
        "no dict": with_header("[1, 2]"),
        "odd type": with_header("{'descr': 'O9', 'fortran_order': False, 'shape': (5,)}"),
        "huge": with_header("{'descr': '<u4', 'fortran_order': False, 'shape': (1000000000000000,)}"),
        "negative": with_header("{'descr': '<u4', 'fortran_order': False, 'shape': (-5,)}"),
        "null": with_header("{'descr': '<u4', 'fortran_order': False, 'shape': (5,)}\0"),
    }
    contents["no rows"] = to_bytes(table[:0])
    for content in contents.values():
        with pytest.raises(UserError, match=r"t\.npy is damaged"):
            parse_table(content, "t.npy", records, 2)


def test_more_scans_than_there_can_be() -> None:
    table, _ = good()
    records = [shard("a", 2**63), shard("b", 2**63 + 5)]  # in 64 bits their sum is 5
    with pytest.raises(UserError, match=r"t\.npy is damaged"):
        parse_table(to_bytes(table), "t.npy", records, 2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 400))
def test_any_bytes_are_a_table_or_an_error(changes: list[tuple[int, int]], cut: int) -> None:
    table, records = good()
    content = bytearray(to_bytes(table))
    for place, value in changes:
        content[place % len(content)] = value
    try:
        found = parse_table(bytes(content[: len(content) - max(0, cut - 200)]), "t.npy", records, 2)
    except UserError:
        return
    assert found.dtype == ROW
    assert found["flat"].view(np.uint8).max() <= 1
    assert all(len(patient.decode("ascii")) == 32 for patient in found["patient"])
    assert {len(study.decode("ascii")) for study in found["study"]} <= {0, 32}


def test_the_table_of_a_build_is_that_of_its_indices(data_sets: Path) -> None:
    data = DataSet(data_sets / "mr")
    rows = [
        rows_of(number, data.index(each).samples, sorted(data.manifest.modalities))
        for number, each in enumerate(data.manifest.shards)
    ]
    assert np.concatenate(rows).tobytes() == data.samples().tobytes()
