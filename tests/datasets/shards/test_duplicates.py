"""The same voxels twice: one scan stays, everyone who has it is remembered, and nothing depends on chance."""

from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.identity import fraction, keyed_hash, site_key
from scanfoundry.datasets.plan import DataConfig, SamplingPlan
from scanfoundry.datasets.readers import read
from scanfoundry.datasets.shards.build import BuildOptions, BuildSummary, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.duplicates import Dropped, Kept, SampleId, find_duplicates
from scanfoundry.datasets.shards.format import LabelRecord, MaskMember, SampleEntry
from scanfoundry.datasets.shards.reader import DataSet, ShardReader

PEOPLE = [f"{number:032x}" for number in (1, 2, 3)]
FACTS = {
    "shape": (1, 1, 9, 9),
    "dtype": "int16",
    "stored": "int16",
    "modality": "mr",
    "stats": {},
    "grid": (1, 1, 1),
    "foreground": "gA==",
    "offset": 512,
    "length": 100,
    "crc32": 0,
}
LABELS = st.sampled_from(
    [
        None,
        LabelRecord(classes={"diagnosis": "benign"}),
        LabelRecord(classes={"diagnosis": "malignant"}),
        LabelRecord(classes={"diagnosis": "benign"}, targets={"age": 61.0}),
        LabelRecord(boxes=[]),
        LabelRecord(names={1: "liver"}),  # of no mask: says nothing
    ]
)
MASKS = st.sampled_from(
    [None, *(MaskMember(offset=1024, length=9, crc32=crc, dtype="uint8", stored="uint8") for crc in (1, 2))]
)


def labelled(entry: SampleEntry) -> int:
    labels = entry.labels or LabelRecord()
    return len(labels.classes) + len(labels.targets) + (labels.boxes is not None) + (entry.mask is not None)


@st.composite
def entries(draw: st.DrawFn) -> SampleEntry:
    return SampleEntry(
        key="a",
        content=f"{draw(st.integers(0, 3)):032x}",
        patient=draw(st.sampled_from(PEOPLE)),
        labels=draw(LABELS),
        mask=draw(MASKS),
        **FACTS,
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.lists(entries(), max_size=5), max_size=4))
def test_what_becomes_of_a_group(shards: list[list[SampleEntry]]) -> None:
    scans = {(number, sample): entry for number, shard in enumerate(shards) for sample, entry in enumerate(shard)}

    def walk() -> Iterator[tuple[SampleId, SampleEntry]]:
        yield from scans.items()

    decisions = find_duplicates(walk)
    for content in {entry.content for entry in scans.values()}:
        group = {place: entry for place, entry in scans.items() if entry.content == content}
        if len(group) == 1:
            assert not group.keys() & decisions.keys()
            continue
        first = min(group, key=lambda place: (-labelled(group[place]), place))  # the most labels, then the order
        kept = decisions[first]
        assert isinstance(kept, Kept)
        assert {*kept.also, group[first].patient} == {entry.patient for entry in group.values()}
        assert list(kept.also) == sorted(set(kept.also) - {group[first].patient})
        others = {place: decisions[place] for place in group if place != first}
        for place, decision in others.items():
            assert isinstance(decision, Dropped)
            assert decision.twin == first
            if not labelled(group[place]):
                assert not decision.labels_differ
            elif group[place].mask == group[first].mask:
                assert decision.labels_differ == (group[place].labels != group[first].labels)
        assert kept.labels_differ == any(
            isinstance(decision, Dropped) and decision.labels_differ for decision in others.values()
        )
    assert decisions.keys() <= scans.keys()


def volume(path: Path, array: np.ndarray) -> None:
    """`array` (D, H, W) in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, image=array)
    else:
        nib.save(nib.Nifti1Image(array.T, np.diag([1.0, 1, 2, 1])), path)


# Twins of each kind, by name of the file; the folder is the patient.
FILES = {
    "three": ["p1/three_a.nii.gz", "p2/three_b.npy", "p3/three_c.npz"],
    "plain": ["p1/plain_a.nii", "p1/plain_b.npy"],
    "agree": ["p4/agree_a.npy", "p5/agree_b.npy"],
    "differ": ["p4/differ_a.npy", "p6/differ_b.nii.gz"],
    "single": ["p7/single_a.npy"],
}
ROWS = {
    "p2/three_b": ("benign", ""),
    "p3/three_c": ("benign", "61"),
    "p4/agree_a": ("malignant", "40"),
    "p5/agree_b": ("malignant", "40"),
    "p4/differ_a": ("malignant", ""),
    "p6/differ_b": ("benign", "55"),
    "p7/single_a": ("benign", "62"),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    for names in FILES.values():
        array = rng.integers(-500, 500, (9, 11, 10)).astype(np.int16)
        for name in names:
            volume(folder / "in" / name, array)
    # Alike but for the shape, the dtype, one voxel: no duplicates.
    base = rng.integers(0, 200, (12, 12)).astype(np.uint8)
    changed = base.copy()
    changed[3, 4] ^= 1
    for number, array in enumerate([base, base.reshape(9, 16), base.astype(np.int16), changed]):
        volume(folder / "in" / "p8" / f"near_{number}.npy", array)
    # An image and its array.
    image = rng.integers(0, 255, (20, 21)).astype(np.uint8)
    Image.fromarray(image).save(folder / "in" / "p8" / "image_a.png")
    volume(folder / "in" / "p9" / "image_b.npy", image)
    lines = ["id,diagnosis,age", *(f"{name},{','.join(cells)}" for name, cells in ROWS.items())]
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


Built = tuple[Path, BuildSummary]
Builder = Callable[..., Built]


@pytest.fixture(scope="module")
def site(fixed_key: Callable[[str], Path]) -> Path:
    """A key that never changes, and the order of the scans with it."""
    return fixed_key("duplicates")


@pytest.fixture(scope="module")
def builder(cohort: Path, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    def run(**changes: object) -> Built:
        out = tmp_path_factory.mktemp("built") / "out"
        given = {"labels": [cohort / "labels.csv"], "label_columns": ["age"], "patient_regex": r"p\d"}
        given |= {"key_file": site, "shard_mb": 1e-6}
        return out, build([cohort / "in"], out, BuildOptions(**(given | {"workers": 1} | changes)))

    return run


@pytest.fixture(scope="module")
def apart(builder: Builder) -> Built:
    """Every source in a shard of its own."""
    return builder()


def scans_of(folder: Path) -> dict[str, SampleEntry]:
    data = DataSet(folder)
    return {entry.key: entry for shard in data.manifest.shards for entry in data.index(shard).samples}


def patient(name: str, site: Path) -> str:
    return keyed_hash(site_key(site), "patient", name)


@pytest.fixture(scope="module")
def keys(cohort: Path, site: Path) -> dict[str, str]:
    """Keys of the samples by path."""
    key = site_key(site)
    paths = [path.relative_to(cohort / "in").as_posix() for path in (cohort / "in").rglob("*.*")]
    return {path: keyed_hash(key, "scan", path)[:20] for path in paths}


def test_one_of_each_stays_with_the_most_labels(apart: Built, keys: dict[str, str]) -> None:
    out, summary = apart
    scans = scans_of(out)
    assert (summary.sources, summary.scans) == (16, 10)
    assert summary.quarantined == {"duplicate": 6}
    assert summary.warnings == {"labels_differ": 2}
    assert keys["p3/three_c.npz"] in scans  # two labels; the others one and none
    assert keys["p6/differ_b.nii.gz"] in scans
    assert not {keys["p1/three_a.nii.gz"], keys["p2/three_b.npy"], keys["p4/differ_a.npy"]} & scans.keys()
    kept = scans[keys["p3/three_c.npz"]]
    assert kept.labels == LabelRecord(classes={"diagnosis": "benign"}, targets={"age": 61.0})
    assert kept.warnings == ["labels_differ"]
    agree = [scans[keys[name]] for name in FILES["agree"] if keys[name] in scans]
    assert [each.warnings for each in agree] == [[]]
    assert all(keys[f"p8/near_{number}.npy"] in scans for number in range(4))
    assert sum(keys[name] in scans for name in ("p8/image_a.png", "p9/image_b.npy")) == 1
    report = check(out)
    assert (report.scans, report.duplicates, report.patients) == (10, 0, 9)


def test_everyone_who_has_it_is_remembered(apart: Built, keys: dict[str, str], site: Path) -> None:
    out, summary = apart
    scans, manifest = scans_of(out), DataSet(out).manifest
    assert scans[keys["p3/three_c.npz"]].also == sorted(patient(name, site) for name in ("p1", "p2"))
    assert scans[keys["p6/differ_b.nii.gz"]].also == [patient("p4", site)]
    plain = next(scans[keys[name]] for name in FILES["plain"] if keys[name] in scans)
    assert (plain.patient, plain.also) == (patient("p1", site), [])
    assert manifest.also == sorted({each for entry in scans.values() for each in entry.also})
    assert summary.patients == manifest.patients == 9
    table = DataSet(out).samples()
    for row, entry in zip(table, scans.values(), strict=True):
        assert row["least"] == min(fraction(each) for each in entry.all_patients())


def test_the_quarantine_names_the_twin(apart: Built) -> None:
    lines = {line.path: line for line in read_quarantine(apart[0])}
    assert all(line.kind == "duplicate" for line in lines.values())
    assert lines["p1/three_a.nii.gz"].reason == "has the same voxels as p3/three_c.npz"
    assert lines["p2/three_b.npy"].reason == "has the same voxels as p3/three_c.npz; their labels differ"
    assert lines["p4/differ_a.npy"].reason == "has the same voxels as p6/differ_b.nii.gz; their labels differ"
    agree = {line for line in lines.values() if "agree" in line.path}
    assert [line.reason for line in agree] == [
        f"has the same voxels as {({*FILES['agree']} - {line.path}).pop()}" for line in agree
    ]
    text = "".join(path.read_text("latin1") for path in apart[0].iterdir() if path.name != "quarantine.jsonl")
    assert not [name for names in FILES.values() for name in names if name in text]


def test_the_voxels_that_stay_are_right(apart: Built, cohort: Path, keys: dict[str, str]) -> None:
    data = DataSet(apart[0])
    sources = {key: path for path, key in keys.items()}
    seen = 0
    for shard in data.manifest.shards:
        reader = ShardReader(data.folder, shard)
        for number, entry in enumerate(reader.entries):
            (scan,) = read(cohort / "in" / sources[entry.key])
            found = reader.read(number)
            assert (found.dtype, found.tobytes()) == (scan.voxels.dtype, np.ascontiguousarray(scan.voxels).tobytes())
            seen += 1
    assert seen == 10


def test_shards_that_are_only_duplicates_are_gone(apart: Built) -> None:
    shards = DataSet(apart[0]).manifest.shards
    assert len(shards) == 10
    assert int(shards[-1].name[6:12]) > 10  # their numbers have gaps
    assert sorted(path.name for path in apart[0].glob("*.tar")) == [shard.name for shard in shards]
    assert len(list(apart[0].glob("*.idx.json"))) == 10


def test_who_stays_depends_on_neither_shards_nor_workers(apart: Built, builder: Builder, contents: Callable) -> None:
    place = {"offset", "length", "crc32"}
    found = {key: entry.model_dump(exclude=place) for key, entry in scans_of(apart[0]).items()}
    together, _ = builder(shard_mb=1.0)
    assert len(DataSet(together).manifest.shards) == 1
    assert {key: entry.model_dump(exclude=place) for key, entry in scans_of(together).items()} == found
    assert read_quarantine(together) == read_quarantine(apart[0])
    assert contents(builder(workers=2)[0]) == contents(apart[0])


def test_a_scan_is_held_out_with_any_of_its_patients(apart: Built) -> None:
    scans = scans_of(apart[0])
    shares = sorted({fraction(each) for entry in scans.values() for each in entry.all_patients()})
    source = [{"name": "a", "path": apart[0]}]
    both = 0
    for share in shares[1:-1]:
        share += 1e-9
        allowed = {key for key, entry in scans.items() if min(map(fraction, entry.all_patients())) >= share}
        if not allowed:
            continue
        plan = SamplingPlan(DataConfig(sources=source, crop_2d=(8, 8), batch_2d=1, holdout=share, window=3), 0)
        drawn = set()
        for step in range(4 * len(scans)):
            for draw in plan.draws(step):
                shard = plan.data[0].manifest.shards[draw.shard]
                drawn.add(plan.data[0].index(shard).samples[draw.sample].key)
        assert drawn == allowed
        people = {each for key in drawn for each in scans[key].all_patients()}
        assert people <= set(plan.patients())
        assert all(fraction(each) >= share for each in plan.patients())
        both += any(
            min(map(fraction, entry.all_patients())) < share <= fraction(entry.patient) for entry in scans.values()
        )
    assert both, "no share holds out only the patient of a twin"


def test_without_labels(builder: Builder, keys: dict[str, str]) -> None:
    """Of twins without labels, the first in the order of the build stays."""
    out, summary = builder(labels=[], label_columns=[])
    scans = scans_of(out)
    assert (summary.scans, summary.warnings) == (10, {})
    for names in FILES.values():
        assert [keys[name] in scans for name in names].count(True) == 1
        first = min(names, key=lambda name: keys[name])  # sources are sorted by their hashes
        assert keys[first] in scans
