"""Exclusion maps: what a mask excludes is padding to every loss, and nothing of it is seen."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import digest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.batch import Batch, Crops
from scanfoundry.datasets.crop import overlap, place
from scanfoundry.datasets.intensity import IntensityConfig, background, normalise, scaling, statistics
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Position, SamplingPlan
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.format import unpack_bits
from scanfoundry.datasets.shards.reader import DataSet, ShardReader
from scanfoundry.datasets.workers.shared_buffers import DTYPES, SharedBuffers, bits_of, buffer_size, view_of

NAMES = {1: "tumour", 2: "defaced", 3: "implant"}


@pytest.fixture(scope="session")
def masked(
    tmp_path_factory: pytest.TempPathFactory, key_file: Path, write_nifti: Callable, write_png: Callable
) -> Path:
    """Volumes and images with masks of three values, half of the images and a third of the volumes without one."""
    root = tmp_path_factory.mktemp("masked")
    rng = np.random.default_rng(2)
    for number in range(9):
        shape = rng.integers(12, 30, 3)
        array = (rng.normal(size=shape) * 20 + 100 * number + 300).astype(np.int16)
        write_nifti(root / "in" / "vol" / f"case{number}.nii.gz", array)
        if number % 3:
            write_nifti(root / "masks" / "vol" / f"case{number}.nii.gz", rng.integers(0, 4, shape).astype(np.uint8))
    for number in range(8):
        shape = rng.integers(20, 50, 2)
        write_png(root / "in" / "img" / f"im{number}.png", rng.integers(0, 255, shape).astype(np.uint8))
        if number % 2:
            mask = np.zeros(shape, np.uint8)
            mask[: shape[0] // 2] = 255
            write_png(root / "masks" / "img" / f"im{number}.png", mask)
    (root / "names.json").write_text(json.dumps(NAMES))
    for name, labels in (("vol", [root / "names.json"]), ("img", [])):
        options = BuildOptions(
            key_file=key_file, shard_mb=0.05, workers=1, masks=[root / "masks" / name], labels=labels, modality="mr"
        )
        build([root / "in" / name], root / "out" / name, options)
    return root / "out"


def config(folder: Path, vol: str | None, img: str | None, **changes: object) -> DataConfig:
    base = {
        "sources": [
            {"name": "vol", "path": folder / "vol", "flip_axes": [0, 2], "exclude": vol},
            {"name": "img", "path": folder / "img", "flip_axes": [1, 2], "exclude": img},
        ],
        "crop_2d": (24, 33),
        "crop_3d": (10, 13, 21),
        "batch_2d": 8,
        "batch_3d": 4,
        "workers": 0,
        "ring": 3,
        "window": 2,
    }
    return DataConfig(**(base | changes))


VALUES = {"defaced": {2}, "2": {2}, "*": {1, 2, 3}, "1": {1}}


@pytest.mark.parametrize(("vol", "img"), [("defaced", "1"), ("*", None), ("2", "*")])
@pytest.mark.parametrize("channels", [1, 3])
def test_excluded_voxels_are_padding(masked: Path, vol: str, img: str | None, channels: int) -> None:
    options = config(masked, vol, img, channels=channels)
    labels, seen = {0: vol, 1: img}, Counter()
    with CropLoader(options, 0) as loader:
        for _ in range(16):
            batch = next(loader)
            size = tuple(batch.voxels.shape[2:])
            for position, draw in enumerate(loader.plan.draws(batch.step)):
                data = loader.plan.data[draw.source]
                reader = ShardReader(data.folder, data.manifest.shards[draw.shard])
                entry = reader.entries[draw.sample]
                scan = normalise(reader.read(draw.sample), entry.modality, entry.stats, options.intensity)[0]
                mask = reader.read_mask(draw.sample)
                label = labels[draw.source]
                kept = np.ones(scan.shape, bool)
                if mask is not None and label is not None:
                    kept = ~np.isin(mask, list(VALUES[label]))
                dark = background(entry.modality, entry.stats, options.intensity)
                bitmap = unpack_bits(entry.foreground, entry.grid)
                axes = options.sources[draw.source].flip_axes
                where = place(draw.seed, entry.shape[1:], size, bitmap, options.foreground, axes)
                of_scan, of_crop = overlap(where.start, entry.shape[1:], size)
                voxels, valid = np.full(size, dark, np.float32), np.zeros(size, bool)
                voxels[of_crop], valid[of_crop] = np.where(kept, scan, dark)[of_scan], kept[of_scan]
                flips = [axis for axis in range(3) if where.flips[axis]]
                assert np.array_equal(batch.valid[position, 0].numpy(), np.flip(valid, flips))
                for channel in range(channels):
                    assert np.array_equal(batch.voxels[position, channel].numpy(), np.flip(voxels, flips))
                seen[draw.source, mask is not None, bool((~kept).any())] += 1
    assert seen[0, True, True] > 8
    assert seen[0, False, False] > 4
    assert seen[1, True, img is not None] > 8


def test_the_ring_holds_a_map_where_something_is_excluded(masked: Path) -> None:
    found = Counter()
    with CropLoader(config(masked, None, "*", batch_2d=2), 0) as loader:
        for _ in range(40):
            made = loader.crops()
            is_2d = made.voxels.shape[2] == 1
            found[is_2d, made.excluded is not None] += 1
            if made.excluded is not None:
                assert made.excluded.shape == (2, -(-24 * 33 // 8))
    assert found.keys() == {(False, False), (True, True), (True, False)}
    with CropLoader(config(masked, None, None), 0) as loader:
        plain = loader._buffers.size
        assert all(loader.crops().excluded is None for _ in range(8))
    with CropLoader(config(masked, None, "*"), 0) as loader:
        assert plain < loader._buffers.size < 1.04 * plain


def test_maps_in_hand_are_never_overwritten(masked: Path) -> None:
    with CropLoader(config(masked, "*", "*", ring=2), 0) as loader:
        maps = [loader.crops().excluded for _ in range(4)]  # the map alone holds the buffer
        before = [None if each is None else each.clone() for each in maps]
        for _ in range(4):
            next(loader)
        assert sum(each is not None for each in maps) > 2
        for one, two in zip(maps, before, strict=True):
            assert one is None if two is None else torch.equal(one, two)


@pytest.fixture(scope="module")
def reference(masked: Path) -> list[str]:
    with CropLoader(config(masked, "defaced", "*"), 3) as loader:
        return [digest(next(loader)) for _ in range(24)]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(masked: Path, reference: list[str], workers: int) -> None:
    with CropLoader(config(masked, "defaced", "*", workers=workers), 3) as loader:
        assert [digest(next(loader)) for _ in range(24)] == reference


def test_resume_and_ranks_change_nothing(masked: Path, reference: list[str]) -> None:
    with CropLoader(config(masked, "defaced", "*"), 3, position=Position(0, 5)) as loader:
        assert [digest(next(loader)) for _ in range(19)] == reference[5:]
    ranks = [CropLoader(config(masked, "defaced", "*"), 3, rank, 2) for rank in range(2)]
    for expected in reference[:8]:
        one, two = (next(rank) for rank in ranks)
        voxels, valid, seeds = (
            torch.cat([getattr(each, name) for each in (one, two)]) for name in ("voxels", "valid", "seeds")
        )
        names = {name: getattr(one, name) + getattr(two, name) for name in ("keys", "modalities", "sources")}
        assert digest(Batch(voxels, valid, seeds, step=one.step, **names)) == expected
    for rank in ranks:
        rank.close()


def test_partners_are_excluded_from_as_well(masked: Path) -> None:
    options = config(masked, "*", "*", positives="crops", min_overlap=1.0, foreground=0.0)
    with CropLoader(options, 0) as loader:
        differ = 0
        for _ in range(10):
            first, second = next(loader).halves()
            share = [each.valid.float().mean((1, 2, 3, 4)) for each in (first, second)]
            assert torch.equal(*share)  # at one place, flipped or not
            differ += int((first.valid != second.valid).any())
        assert differ
    with pytest.raises(UserError, match="take 'crops'"):
        SamplingPlan(options.model_copy(update={"positives": "study"}), 0)


def test_statistics_and_everything_else_stay(masked: Path) -> None:
    with CropLoader(config(masked, None, None), 0) as plain, CropLoader(config(masked, "*", "*"), 0) as excluding:
        less = 0
        for _ in range(12):
            one, two = next(plain), next(excluding)
            assert (one.keys, one.seeds.tolist()) == (two.keys, two.seeds.tolist())
            assert not (two.valid & ~one.valid).any()
            assert torch.equal(torch.where(two.valid, one.voxels, 0), torch.where(two.valid, two.voxels, 0))
            less += int((one.valid & ~two.valid).sum())
        assert less > 1000


def test_labels_that_no_scan_has(masked: Path, data_sets: Path) -> None:
    with pytest.raises(
        UserError, match=r"'vol': no mask of .*vol/? has 'defacde' \(exclude\); .* defaced, implant, tumour"
    ):
        SamplingPlan(config(masked, "defacde", None), 0)
    for label in ("7", "0", "tumour"):
        with pytest.raises(UserError, match=r"'img': no mask .* there are no names"):
            SamplingPlan(config(masked, None, label), 0)
    sources = [{"name": "mr", "path": data_sets / "mr", "exclude": "*"}]
    with pytest.raises(UserError, match=r"'mr': no mask of .* has '\*'"):
        SamplingPlan(config(masked, None, None, sources=sources), 0)


def test_a_damaged_mask_takes_its_scan_along(masked: Path, tmp_path: Path) -> None:
    """Rather no scan than one whose face is trained on."""
    folder = Path(shutil.copytree(masked, tmp_path / "copy"))
    data = DataSet(folder / "vol")
    shard, entry = next(
        (shard, entry)
        for shard in data.manifest.shards
        for entry in data.index(shard).samples
        if entry.mask is not None
    )
    path = folder / "vol" / shard.name
    content = bytearray(path.read_bytes())
    content[entry.mask.offset + entry.mask.length // 2] ^= 1
    path.write_bytes(content)
    for exclude, bad in (("*", 1), (None, 0)):
        with CropLoader(config(folder, exclude, None, bad_sample_ceiling=0.1), 0) as loader:
            keys = [key for _ in range(20) for key in next(loader).keys]
            assert loader.stats()["bad_samples"] == bad
            assert (entry.key in keys) == (not bad)


# Between the ring and the model.


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.sampled_from([1, 3]), st.booleans(), st.booleans())
def test_crops_to_a_batch(seed: int, dtype: str, channels: int, padded: bool, rubbish: bool) -> None:
    rng, size = np.random.default_rng(seed), (3, 5, 7)
    voxels = rng.normal(100, 40, (3, channels, *size)).clip(0, 120).astype(dtype)
    excluded = rng.random((3, *size)) < rng.random((3, 1, 1, 1))
    inside = np.tile(np.array([[0, 0, 0], size]), (3, 1, 1))
    if padded:
        inside[1] = [[1, 0, 2], [3, 4, 7]]
    kept = ~excluded
    kept[1] &= np.pad(np.ones(inside[1, 1] - inside[1, 0]), [*zip(inside[1, 0], size - inside[1, 1], strict=True)]) > 0
    stats = [statistics(each) for each in voxels]
    expected = np.stack(
        [
            np.where(keep, normalise(each, "mr", known, IntensityConfig()), background("mr", known, IntensityConfig()))
            for each, keep, known in zip(voxels, kept, stats, strict=True)
        ]
    )
    flips = rng.random((3, 3)) < 0.5
    scales = np.array([scaling("mr", each, IntensityConfig()) for each in stats])
    scales[:, 3] = 1 / scales[:, 3]
    if rubbish and dtype == "float32":
        voxels[~np.broadcast_to(kept[:, None], voxels.shape)] = rng.choice([np.nan, np.inf, -3e38])
    buffers = np.zeros(buffer_size(size, 3, channels, True), np.uint8)
    view_of(buffers, dtype, size, 3, channels)[:] = voxels
    bits_of(buffers, size, 3, channels)[:] = np.stack([np.packbits(each) for each in excluded])
    names = ["a", "b", "c"]
    batch = Crops(
        torch.from_numpy(view_of(buffers, dtype, size, 3, channels)),
        inside, flips, scales.astype(np.float32), torch.arange(3), names, ["mr"] * 3, names, 1,
        excluded=torch.from_numpy(bits_of(buffers, size, 3, channels)),
    ).to("cpu")  # fmt: skip
    for sample in range(3):
        axes = [1 + axis for axis in range(3) if flips[sample, axis]]
        assert np.array_equal(batch.voxels[sample].numpy(), np.flip(expected[sample], axes))
        assert np.array_equal(batch.valid[sample].numpy(), np.flip(kept[sample][None], axes))


def test_the_buffer_has_room_for_both() -> None:
    size, count = (3, 5, 7), 4
    buffers = SharedBuffers(buffer_size(size, count, 3, True), 1, 1)
    buffer = buffers.view(0)
    view_of(buffer, "float32", size, count, 3)[:] = 1
    bits_of(buffer, size, count, 3)[:] = 255
    assert (view_of(buffer, "float32", size, count, 3) == 1).all()
    assert len(buffer) == count * (3 * 105 * 4 + 14)
    buffers.close()


@pytest.mark.parametrize("preset", ["mild", "strong"])
@pytest.mark.parametrize("shape", [(1, 40, 48), (12, 20, 24)])
def test_augmentation_does_not_look_into_a_hole(preset: str, shape: tuple[int, int, int]) -> None:
    """What is excluded has no influence on what is valid, and stays excluded wherever a view puts it."""
    rng = np.random.default_rng(5)
    voxels = torch.from_numpy(rng.normal(size=(24, 1, *shape)).astype(np.float32))
    valid = torch.ones((24, 1, *shape), dtype=torch.bool)
    valid[:, :, :, 9:14, 11:19] = False
    voxels[:, :, 0, 0, 0], voxels[:, :, 0, 0, 1] = -5.0, 5.0  # the range is the same whatever the hole holds
    low = torch.tensor(-5.0)
    names = [str(number) for number in range(24)]
    dark = Batch(torch.where(valid, voxels, low), valid, torch.arange(24), names, ["mr"] * 24, names, 0)
    bright = replace(dark, voxels=torch.where(valid, voxels, torch.tensor(5.0)))
    augment = Augment(AugmentConfig(preset=preset))
    one, two = augment(dark), augment(bright)
    assert torch.equal(one.valid, two.valid)
    assert not one.valid.flatten(1).all(1).any()
    # A view's voxel is valid with up to a thousandth of its weight on what is not: see resample._TOUCHED.
    apart = torch.where(one.valid, one.voxels - two.voxels, 0).abs()
    assert apart.max() <= 10 * 1e-3
    assert (apart > 1e-4).float().mean() < 0.01
    assert (one.voxels[~one.valid] == low).all()
    assert (one.voxels[one.valid] >= low).all()
    assert one.valid.float().mean() > 0.5


def test_lesions_of_real_ultrasound(real_data: Path, key_file: Path, tmp_path: Path) -> None:
    """Masks of lesions stand in for what should not be looked at."""
    source = real_data / "busi_breast_ultrasound"
    options = BuildOptions(key_file=key_file, modality="us", masks=[source / "masks"], workers=2)
    build([source / "images"], tmp_path / "out", options)
    data = DataSet(tmp_path / "out")
    readers = [ShardReader(data.folder, shard) for shard in data.manifest.shards]
    masks: dict[str, NDArray] = {}
    for reader in readers:
        for number, entry in enumerate(reader.entries):
            mask = reader.read_mask(number)
            if mask is not None:
                masks[entry.key] = mask
    assert len(masks) > 10
    sources = [{"name": "us", "path": tmp_path / "out", "flip_axes": [2], "exclude": "1"}]
    settings_ = DataConfig(sources=sources, crop_2d=(640, 1100), batch_2d=4, workers=1)
    seen = 0
    with CropLoader(settings_, 0) as loader:
        for _ in range(8):
            made = loader.crops()
            batch = made.to("cpu")
            for sample, key in enumerate(batch.keys):
                # Crops as large as these hold the whole scan.
                first, end = made.inside[sample]
                left_out = int(np.prod(end - first)) - int(batch.valid[sample].sum())
                if tuple(end - first) == masks.get(key, np.empty(0)).shape:
                    assert left_out == int((masks[key] == 1).sum())
                    seen += left_out > 0
    assert seen > 5
