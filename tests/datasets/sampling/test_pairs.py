"""Two-scan positives: whose partner a crop is, where it lies, and that nothing but seed and position decides it."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import digest, stream

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.crop import CropPlacement, near, overlap, place
from scanfoundry.datasets.intensity import background, normalise
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Draw, Position, SamplingPlan
from scanfoundry.datasets.sampling.pairs import StudyPartners
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.format import SampleEntry, unpack_bits
from scanfoundry.datasets.shards.reader import DataSet, ShardReader

SHARES = (0.01, 0.25, 0.5, 0.8, 1.0)


@pytest.fixture(scope="session")
def studies(
    tmp_path_factory: pytest.TempPathFactory, key_file: Path, write_nifti: Callable, write_png: Callable
) -> Path:
    """Volumes of eight cases, one to three contrasts each, the last of another shape; images of six cases."""
    root = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(1)
    for case in range(8):
        shape = rng.integers(14, 34, 3)
        for number, contrast in enumerate(["t1", "t2", "flair"][: 1 + case % 3]):
            size = shape - (number == 2) * np.array([1, 0, 2])
            array = (rng.normal(size=size) * 20 + 100 * case + 700 * number + 300).astype(np.int16)
            write_nifti(root / "in" / "vol" / f"case{case}_{contrast}.nii.gz", array)
    for case in range(6):
        for channel in range(2):
            array = rng.integers(0, 200, (44, 51)).astype(np.uint8) + np.uint8(5 * case + 2 * channel)
            write_png(root / "in" / "img" / f"im{case}_{channel:04d}.png", array)
    options = BuildOptions(key_file=key_file, shard_mb=0.05, workers=1)
    build([root / "in" / "vol"], root / "out" / "vol", options.model_copy(update={"modality": "mr"}))
    for name in ("first", "second"):
        write_nifti(
            root / "in" / "solo" / f"{name}.nii.gz", (rng.normal(size=(20, 20, 20)) * 20 + 100).astype(np.int16)
        )
    build([root / "in" / "solo"], root / "out" / "solo", options.model_copy(update={"modality": "mr"}))
    build([root / "in" / "img"], root / "out" / "img", options.model_copy(update={"modality": "us"}))
    return root / "out"


def config(folder: Path, positives: str, **changes: object) -> DataConfig:
    base = {
        "sources": [
            {"name": "vol", "path": folder / "vol", "flip_axes": [0, 2]},
            {"name": "img", "path": folder / "img", "flip_axes": [2]},
        ],
        "crop_2d": (24, 32),
        "crop_3d": (10, 12, 20),
        "batch_2d": 8,
        "batch_3d": 4,
        "workers": 0,
        "ring": 3,
        "window": 2,
        "positives": positives,
    }
    return DataConfig(**(base | changes))


def entry_of(plan: SamplingPlan, draw: Draw) -> tuple[ShardReader, SampleEntry]:
    data = plan.data[draw.source]
    reader = ShardReader(data.folder, data.manifest.shards[draw.shard])
    return reader, reader.entries[draw.sample]


def studies_by_key(folder: Path) -> dict[str, str]:
    found = {}
    for name in ("vol", "img"):
        data = DataSet(folder / name)
        for shard in data.manifest.shards:
            found |= {entry.key: entry.study for entry in data.index(shard).samples}
    return found


POSITIVES = pytest.mark.parametrize("positives", ["crops", "study"])


# Where a partner lies.


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.integers(1, 24)] * 3),
    st.sampled_from(SHARES),
    st.integers(0, 2**63),
)
def test_two_crops_share_what_they_are_asked_to(
    scan: tuple[int, int, int], crop: tuple[int, int, int], share: float, seed: int
) -> None:
    first = place(seed, scan, crop, np.ones((2, 2, 2), bool), 0.5, (0, 2))
    other = near(first, seed + 1, scan, crop, share, (1,))
    assert other == near(first, seed + 1, scan, crop, share, (1,))
    common = 1.0
    for axis in range(3):
        room = scan[axis] - crop[axis]
        assert (0 <= other.start[axis] <= room) if room > 0 else other.start[axis] == first.start[axis]
        common *= max(0, crop[axis] - abs(other.start[axis] - first.start[axis])) / crop[axis]
    assert common >= share - 1e-9
    assert not other.flips[0]
    assert not other.flips[2]


def test_partners_lie_in_every_direction() -> None:
    first = CropPlacement((20, 20, 20), (False, False, False))
    starts = np.array([near(first, seed, (60, 60, 60), (20, 20, 20), 0.5, (0, 1, 2)).start for seed in range(2000)])
    reach = int((1 - 0.5 ** (1 / 3)) * 20)
    assert (starts.min(0) == 20 - reach).all()
    assert (starts.max(0) == 20 + reach).all()
    assert abs(starts.mean(0) - 20).max() < 0.3
    flips = [near(first, seed, (60, 60, 60), (20, 20, 20), 0.5, (0, 1, 2)).flips for seed in range(400)]
    assert len(set(flips)) == 8
    # A slice stays in its plane: the next one shares no voxel.
    flat = CropPlacement((9, 20, 20), (False, False, False))
    assert {near(flat, seed, (60, 60, 60), (1, 20, 20), 0.5, ()).start[0] for seed in range(200)} == {9}


# Whose partner.


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=3).filter(any), st.integers(0, 2**63))
def test_companions_are_the_others_of_the_study(names: list[list[int]], seed: int) -> None:
    columns = {
        10 * number: np.array([b"%032x" % name if name else b"" for name in part], "S32")
        for number, part in enumerate(names)
    }
    companions = StudyPartners(columns)
    study = {(10 * s, row): name for s, part in enumerate(names) for row, name in enumerate(part)}
    alone = 0
    for scan, name in study.items():
        others = {other for other in study if other != scan and study[other] == name and name}
        alone += not others
        found = {companions.of(*scan, seed + turn, ()) for turn in range(100)}
        assert found == (others or {scan})
        # With some of them bad: whoever is found to be bad, and when, the readable first one of the order is taken.
        bad = {other for other in others if hash((other, seed)) % 2}
        known: set[tuple[int, int]] = set()
        while (chosen := companions.of(*scan, seed, known)) in bad:
            known.add(chosen)
        assert chosen == companions.of(*scan, seed, bad)
        assert chosen in (others - bad or {scan})
    assert (companions.alone, companions.scans) == (alone, len(study))


@POSITIVES
def test_the_first_half_is_the_stream_without_partners(studies: Path, positives: str) -> None:
    with (
        CropLoader(config(studies, "views"), 3) as plain,
        CropLoader(config(studies, positives), 3) as paired,
    ):
        assert plain.plan.steps_per_epoch == paired.plan.steps_per_epoch
        seeds = []
        for _ in range(20):
            batch, pairs = next(plain), next(paired)
            first, second = pairs.halves()
            assert digest(first) == digest(batch)
            assert (pairs.paired, batch.paired, first.paired, second.paired) == (True, False, False, False)
            assert len(pairs) == 2 * len(batch) == 2 * len(second)
            seeds += pairs.seeds.tolist()
            with pytest.raises(ValueError, match=r"no partners: data\.positives"):
                batch.halves()
        assert len(set(seeds)) == len(seeds)


def expected(
    plan: SamplingPlan, settings: DataConfig, draw: Draw, where: CropPlacement, size: tuple[int, ...]
) -> NDArray:
    """The slow way: the scan normalised whole, then cut."""
    reader, entry = entry_of(plan, draw)
    scan = normalise(reader.read(draw.sample), entry.modality, entry.stats, settings.intensity)[0]
    of_scan, of_crop = overlap(where.start, entry.shape[1:], (size[0], size[1], size[2]))
    crop = np.full(size, background(entry.modality, entry.stats, settings.intensity), np.float32)
    crop[of_crop] = scan[of_scan]
    return np.flip(crop, [axis for axis in range(3) if where.flips[axis]])


@POSITIVES
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_partners_lie_where_they_should(studies: Path, positives: str, share: float) -> None:
    options = config(studies, positives, min_overlap=share)
    seen: Counter[str] = Counter()
    with CropLoader(options, 0) as loader:
        plan = loader.plan
        for _ in range(16):
            batch = next(loader)
            _, second = batch.halves()
            size = tuple(batch.voxels.shape[2:])
            for position, draw in enumerate(plan.draws(batch.step)):
                partner = plan.partner(draw)
                one, two = entry_of(plan, draw)[1], entry_of(plan, partner)[1]
                axes = options.sources[draw.source].flip_axes
                own = [
                    place(each.seed, entry.shape[1:], size, unpack_bits(entry.foreground, entry.grid), 0.9, axes)
                    for each, entry in ((draw, one), (partner, two))
                ]
                if one.key == two.key:
                    how = "itself"
                    where = near(own[0], partner.seed, one.shape[1:], size, share, axes) if share else own[1]
                else:
                    assert positives == "study"
                    assert (one.study, one.patient) == (two.study, two.patient)
                    how = "aligned" if one.shape == two.shape else "elsewhere"
                    where = own[0] if how == "aligned" else own[1]
                seen[how] += 1
                assert second.keys[position] == two.key
                found = second.voxels[position, 0].numpy()
                assert np.array_equal(found, expected(plan, options, partner, where, size))
    assert seen.keys() == ({"itself"} if positives == "crops" else {"itself", "aligned", "elsewhere"})


def test_who_is_alone_is_counted(studies: Path) -> None:
    plan = SamplingPlan(config(studies, "study"), 0)
    assert plan.alone == {"vol": 3, "img": 0}
    assert SamplingPlan(config(studies, "crops"), 0).alone == {}
    apart = [{"name": "vol", "path": studies / "vol"}]
    assert SamplingPlan(config(studies, "study", sources=apart, crop_2d=None), 0).alone == {"vol": 3}


def test_modalities_that_are_balanced_still_pair(tmp_path: Path, key_file: Path) -> None:
    """A PET and its CT are drawn from streams of their own, and are partners."""
    from scanfoundry.datasets.readers import Scan
    from scanfoundry.datasets.shards.finalize import finalize, write_manifest
    from scanfoundry.datasets.shards.shard_worker import PARTIAL, ShardResult
    from scanfoundry.datasets.shards.thumbnail import thumbnails_path, write_thumbnails
    from scanfoundry.datasets.shards.writer import ShardWriter

    (tmp_path / PARTIAL).mkdir()
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / PARTIAL / "shard-000000.tar", "zstd") as writer:
        for case in range(4):
            for name in ("ct", "pt"):
                scan = Scan(rng.integers(0, 99, (1, 9, 12, 14)).astype(np.int16), (1.0, 1.0, 1.0), modality=name)
                writer.add(scan, f"{name}{case}", "mr", "0" * 32, study=f"{case:032x}")
    write_thumbnails(thumbnails_path(tmp_path / PARTIAL, "shard-000000.tar"), writer.thumbnails.all())
    result = ShardResult(record=writer.record, paths=[""] * 8, sources=8, quarantine=[])
    write_manifest(tmp_path, finalize(tmp_path, {}, [result], "zstd")[0])
    options = DataConfig(
        sources=[{"name": "a", "path": tmp_path}], crop_3d=(8, 8, 8), batch_3d=4, balance="modality",
        temperature=0.0, positives="study", workers=0,
    )  # fmt: skip
    with CropLoader(options, 0) as loader:
        assert (len(loader.plan.streams), loader.plan.alone) == (2, {"a": 0})
        for _ in range(6):
            first, second = next(loader).halves()
            for one, two in zip(first.keys, second.keys, strict=True):
                assert {one, two} == {f"ct{one[2:]}", f"pt{one[2:]}"}
            assert second.modalities == [key[:2] for key in second.keys]


# What does not change it.


@pytest.fixture(scope="module")
def references(studies: Path) -> dict[str, list[str]]:
    found = {}
    for positives in ("crops", "study"):
        with CropLoader(config(studies, positives), 3) as loader:
            found[positives] = stream(loader, 30)
    return found


@POSITIVES
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(studies: Path, references: dict[str, list[str]], positives: str, workers: int) -> None:
    with CropLoader(config(studies, positives, workers=workers), 3) as loader:
        assert stream(loader, 30) == references[positives]


@POSITIVES
def test_resume_from_any_step(studies: Path, references: dict[str, list[str]], positives: str) -> None:
    states = []
    with CropLoader(config(studies, positives), 3) as loader:
        for _ in range(30):
            states.append(loader.state())
            next(loader)
    assert states[-1]["epoch"] > 0
    for step in (1, 9, 17, 29):
        with CropLoader(config(studies, positives), 3, position=Position.of(states[step], 3)) as loader:
            assert stream(loader, 30 - step) == references[positives][step:]


@POSITIVES
@pytest.mark.parametrize(("world", "micro"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_micro_batches_make_up_the_global_pairs(
    studies: Path, positives: str, world: int, micro: int
) -> None:
    with CropLoader(config(studies, positives), 3) as loader:
        whole = [next(loader).halves() for _ in range(4)]
    ranks = [CropLoader(config(studies, positives, ring=6), 3, rank, world, micro) for rank in range(world)]
    for halves in whole:
        parts = [next(rank).halves() for rank in ranks for _ in range(micro)]
        for side, half in enumerate(halves):
            assert torch.equal(torch.cat([part[side].voxels for part in parts]), half.voxels)
            assert torch.equal(torch.cat([part[side].valid for part in parts]), half.valid)
            assert torch.equal(torch.cat([part[side].seeds for part in parts]), half.seeds)
            assert [key for part in parts for key in part[side].keys] == half.keys
    for rank in ranks:
        rank.close()


def damage(folder: Path, number: int) -> str:
    """Damages scan `number` of a data set; its key."""
    data = DataSet(folder)
    scans = [(shard, entry) for shard in data.manifest.shards for entry in data.index(shard).samples]
    shard, entry = scans[number]
    content = bytearray((folder / shard.name).read_bytes())
    content[entry.offset + entry.length // 2] ^= 1
    (folder / shard.name).write_bytes(content)
    return entry.key


@POSITIVES
def test_partners_stay_together_where_scans_are_damaged(
    studies: Path, references: dict[str, list[str]], positives: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(studies, tmp_path / "copy"))
    bad = {damage(folder / "vol", number) for number in (0, 3, 7)} | {damage(folder / "img", 2)}
    study = studies_by_key(folder)
    sizes = Counter(study[key] for key in study if key not in bad)
    streams = []
    for workers, start in ((0, 0), (2, 0), (0, 8)):
        options = config(folder, positives, workers=workers, bad_sample_ceiling=0.5)
        position = Position(0, start)
        with CropLoader(options, 3, position=position) as loader:
            seen = []
            for _ in range(30 - start):
                batch = next(loader)
                seen.append(digest(batch))
                first, second = batch.halves()
                assert not bad & {*first.keys, *second.keys}
                for one, two in zip(first.keys, second.keys, strict=True):
                    assert study[one] == study[two]
                    assert (one == two) == (positives == "crops" or sizes[study[one]] == 1)
            assert loader.stats()["bad_samples"] == 4
        streams.append(seen)
    assert streams[0] == streams[1]
    assert streams[0][8:] == streams[2]
    assert streams[0] != references[positives]
    kept = sum(one == two for one, two in zip(streams[0], references[positives], strict=True))
    assert kept > 0


def test_remote_shards_of_partners_are_fetched_ahead(studies: Path) -> None:
    plan = SamplingPlan(config(studies, "study"), 0)
    for step in range(10):
        draws = plan.draws(step)
        needed = {(each.source, each.shard) for draw in draws for each in (draw, plan.partner(draw))}
        assert set(plan.shards_of(step)) == needed
    assert len({len(plan.shards_of(step)) for step in range(10)}) > 1


def test_mistakes_are_named(studies: Path) -> None:
    with pytest.raises(ValueError, match="'projection' are of volumes: set crop_3d"):
        config(studies, "projection", crop_3d=None)
    with pytest.raises(ValueError, match="min_overlap"):
        config(studies, "crops", min_overlap=1.5)
    with pytest.raises(UserError, match="batch_2d 8 cannot be divided among 3 ranks"):
        CropLoader(config(studies, "crops"), 0, 0, world_size=3)


def test_held_out_scans_are_nobodys_partner(studies: Path) -> None:
    least = np.unique(SamplingPlan(config(studies, "crops"), 0).data[0].samples()["least"])  # one of each patient
    only = [{"name": "vol", "path": studies / "vol"}]
    plan = SamplingPlan(config(studies, "study", holdout=float(least[2]), sources=only), 0)
    patients = set()
    for step in range(40):
        for draw in plan.draws(step):
            patients |= {entry_of(plan, each)[1].patient for each in (draw, plan.partner(draw))}
    assert patients == set(plan.patients())
    assert len(patients) == len(least) - 2
    alone = [{"name": "solo", "path": studies / "solo"}]
    with pytest.raises(UserError, match="none of 2 scans has another"):
        SamplingPlan(config(studies, "study", sources=alone, crop_2d=None), 0)
