"""What becomes of crops between the ring and the model: the bits of `intensity.normalise`, and nobody else's memory."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.batch import Batch, Crops
from scanfoundry.datasets.crop import as_channels, overlap, place
from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.intensity import HIGH, LOW, IntensityConfig, background, normalise, scaling, statistics
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, SamplingPlan
from scanfoundry.datasets.readers import ReadError, Scan
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.finalize import finalize, write_manifest
from scanfoundry.datasets.shards.format import unpack_bits
from scanfoundry.datasets.shards.reader import ShardReader
from scanfoundry.datasets.shards.shard_worker import PARTIAL, ShardResult
from scanfoundry.datasets.shards.thumbnail import thumbnails_path, write_thumbnails
from scanfoundry.datasets.shards.writer import ShardWriter
from scanfoundry.datasets.workers.shared_buffers import DTYPES, SharedBuffers, buffer_size, view_of

SETTINGS = IntensityConfig()
SIZE = (6, 7, 9)


@st.composite
def crops(draw: st.DrawFn) -> tuple[Crops, list[dict[str, float]]]:
    """Crops as the worker leaves them, with rubbish outside of the scan, and the statistics of their scans."""
    dtype, rng = draw(st.sampled_from(DTYPES)), np.random.default_rng(draw(st.integers(0, 2**32)))
    count, channels = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3]))
    shape = (count, channels, *SIZE)
    if dtype == "float32":
        spread = draw(st.sampled_from([1e-6, 1.0, 1e6]))
        voxels = (rng.normal(0, spread, shape) + draw(st.sampled_from([0.0, 10 * spread]))).astype(np.float32)
    else:
        limits = np.iinfo(dtype)
        voxels = rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)
    inside, flips = np.zeros((count, 2, 3), np.int64), np.zeros((count, 3), bool)
    modalities, stats, scales = [], [], np.zeros((count, 4), np.float32)
    for sample in range(count):
        whole = draw(st.booleans())
        for axis, length in enumerate(SIZE):
            low = 0 if whole else draw(st.integers(0, length - 1))
            inside[sample, :, axis] = low, length if whole else draw(st.integers(low + 1, length))
            flips[sample, axis] = draw(st.booleans())
        modalities.append(draw(st.sampled_from(["ct", "mr"])))
        part = tuple(slice(*inside[sample, :, axis]) for axis in range(3))
        stats.append(statistics(voxels[(sample, slice(None), *part)]))
        low, high, centre, scale = scaling(modalities[-1], stats[-1], SETTINGS)
        scales[sample] = low, high, centre, 1 / scale
        if dtype == "float32":
            outside = np.ones(SIZE, bool)
            outside[part] = False
            voxels[sample][:, outside] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
    seeds, names = torch.arange(count), [f"k{sample}" for sample in range(count)]
    made = Crops(torch.from_numpy(voxels), inside, flips, scales, seeds, names, modalities, names, 7)
    return made, stats


def bits(array: np.ndarray) -> bytes:
    return (np.ascontiguousarray(array) + 0.0).tobytes()  # a zero without its sign


@settings(max_examples=150, deadline=None, derandomize=True)
@given(crops())
def test_the_batch_has_the_bits_of_normalise(given: tuple[Crops, list[dict[str, float]]]) -> None:
    made, stats = given
    before = made.voxels.numpy().tobytes()
    batch = made.to("cpu")
    assert made.voxels.numpy().tobytes() == before
    assert (batch.voxels.dtype, batch.valid.dtype) == (torch.float32, torch.bool)
    assert batch.voxels.shape == made.voxels.shape
    assert batch.valid.shape == (len(batch), 1, *SIZE)
    for sample, of_scan in enumerate(stats):
        modality = made.modalities[sample]
        part = tuple(slice(*made.inside[sample, :, axis]) for axis in range(3))
        expected = np.full(made.voxels.shape[1:], background(modality, of_scan, SETTINGS), np.float32)
        valid = np.zeros((1, *SIZE), bool)
        where = (slice(None), *part)
        expected[where] = normalise(made.voxels[sample].numpy()[where], modality, of_scan, SETTINGS)
        valid[where] = True
        axes = [1 + axis for axis in range(3) if made.flips[sample, axis]]
        assert bits(batch.voxels[sample].numpy()) == bits(np.flip(expected, axes))
        assert np.array_equal(batch.valid[sample].numpy(), np.flip(valid, axes))
    assert (batch.keys, batch.modalities, batch.sources, batch.step) == (
        made.keys,
        made.modalities,
        made.sources,
        made.step,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(crops())
def test_a_batch_keeps_nothing_of_the_ring(given: tuple[Crops, list[dict[str, float]]]) -> None:
    """`Crops.to` on the CPU, of float32 and without padding or flips, might hand out the ring's own memory."""
    made = given[0]
    batch = made.to("cpu")
    before = digest(batch)
    made.voxels.zero_()
    made.inside[:], made.flips[:], made.scaling[:] = 0, False, 0
    assert digest(batch) == before


def digest(batch: Batch) -> str:
    content = hashlib.sha256(batch.voxels.numpy().tobytes() + batch.valid.numpy().tobytes())
    return content.hexdigest()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_buffer_is_lent_once(dtype: str) -> None:
    buffers = SharedBuffers(buffer_size(SIZE, 2, 3), 2, 2)
    number = buffers.acquire()
    assert number is not None
    view_of(buffers.view(number), dtype, SIZE, 2, 3)[:] = 1
    lent = torch.from_numpy(view_of(buffers.lend(number), dtype, SIZE, 2, 3))
    assert (lent == 1).all()
    other = buffers.acquire()
    assert other not in (None, number)
    assert buffers.acquire() is None
    part = lent[1:, :, 2]  # a view of a view holds it
    del lent
    assert buffers.acquire() is None
    del part
    assert buffers.acquire() == number
    buffers.close()


SCANS = {
    "u1": np.uint8,
    "i1": np.int8,
    "u2": np.uint16,
    "i2": np.int16,
    "u4": np.uint32,
    "i4": np.int32,
    "i8": np.int64,
    "f2": np.float16,
    "f4": np.float32,
    "f8": np.float64,
}


def built(folder: Path, scans: dict[str, tuple[Scan, str]], size: int = 4) -> Path:
    """A data set of these scans, so many in a shard, by way of the build's own end."""
    (folder / PARTIAL).mkdir(parents=True)
    results, keys = [], list(scans)
    for number in range(0, len(keys), size):
        with ShardWriter(folder / PARTIAL / f"shard-{number:06d}.tar", "zstd") as writer:
            for key in keys[number : number + size]:
                scan, modality = scans[key]
                writer.add(scan, key, modality, hashlib.md5(key.encode()).hexdigest())
        write_thumbnails(thumbnails_path(folder / PARTIAL, f"shard-{number:06d}.tar"), writer.thumbnails.all())
        results.append(ShardResult(record=writer.record, paths=keys[number : number + size], sources=1, quarantine=[]))
    write_manifest(folder, finalize(folder, {}, results, "zstd")[0])
    return folder


@pytest.fixture(scope="module")
def of_all_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of each dtype, small (one block) and large; wide ones hold what 16 bits and float32 cannot."""
    rng = np.random.default_rng(0)
    scans = {}
    for large, shape in ((False, (1, 11, 12, 13)), (True, (1, 67, 65, 63))):
        for name, kind in SCANS.items():
            if np.dtype(kind).kind == "f":
                voxels = rng.normal(0, 100, shape).astype(kind)
            else:
                limits = np.iinfo(kind)
                low, high = max(limits.min, -(2**40)), min(limits.max, 2**40)
                voxels = rng.integers(low, high, shape, endpoint=True).astype(kind)
            scans[f"{name}-{large}"] = Scan(voxels, (1.0, 1.0, 1.0)), "ct" if name == "i2" else "mr"
    levels = (rng.integers(0, 4000, (1, 67, 65, 63)) * np.float32(0.1)).astype(np.float32)
    scans["levels"] = Scan(levels, (1.0, 1.0, 1.0)), "pt"
    return built(tmp_path_factory.mktemp("types") / "set", scans)


@pytest.fixture(scope="module")
def of_colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RGB and grey images, and two videos: frames are images of their own."""
    rng = np.random.default_rng(0)
    scans = {}
    for number in range(3):
        size = (1, 30 + number, 37)
        scans[f"rgb{number}"] = Scan(rng.integers(0, 255, (3, *size)).astype(np.uint8), (1.0, 1.0, 1.0)), "us"
        scans[f"grey{number}"] = Scan(rng.integers(0, 255, (1, *size)).astype(np.uint8), (1.0, 1.0, 1.0)), "us"
    for number, channels in ((1, 1), (2, 3)):
        voxels = rng.integers(0, 255, (channels, 12 * number, 41, 43)).astype(np.uint8)
        scans[f"video{number}"] = Scan(voxels, (1.0, 1.0, 1.0), frames=True), "us"
    scans["scan"] = Scan(rng.integers(0, 255, (1, 12, 41, 43)).astype(np.uint8), (1.0, 1.0, 1.0)), "mr"
    return built(tmp_path_factory.mktemp("colours") / "set", scans)


def config(folder: Path, **changes: object) -> DataConfig:
    base = {
        "sources": [{"name": "a", "path": folder, "flip_axes": [0, 1, 2]}],
        "crop_2d": (24, 32),
        "crop_3d": (16, 12, 20),
        "batch_2d": 6,
        "batch_3d": 4,
        "workers": 0,
        "ring": 3,
        "window": 2,
    }
    return DataConfig(**(base | changes))


def expected(plan: SamplingPlan, settings: DataConfig, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The batch made the slow way: whole scans read, normalised, cut."""
    size = tuple(batch.voxels.shape[2:])
    voxels, valid = np.empty(batch.voxels.shape, np.float32), np.zeros(batch.valid.shape, bool)
    for position, draw in enumerate(plan.draws(batch.step)):
        data, source = plan.data[draw.source], settings.sources[draw.source]
        reader = ShardReader(data.folder, data.manifest.shards[draw.shard])
        entry = reader.entries[draw.sample]
        assert batch.keys[position] == entry.key
        scan = as_channels(reader.read(draw.sample), settings.channels)
        scan = normalise(scan, entry.modality, entry.stats, settings.intensity)
        bitmap = unpack_bits(entry.foreground, entry.grid)
        where = place(draw.seed, entry.shape[1:], size, bitmap, settings.foreground, source.flip_axes)
        of_scan, of_crop = overlap(where.start, entry.shape[1:], size)
        crop = np.full(batch.voxels.shape[1:], background(entry.modality, entry.stats, settings.intensity), np.float32)
        known = np.zeros((1, *size), bool)
        crop[(slice(None), *of_crop)], known[(slice(None), *of_crop)] = scan[(slice(None), *of_scan)], True
        axes = [1 + axis for axis in range(3) if where.flips[axis]]
        voxels[position], valid[position] = np.flip(crop, axes), np.flip(known, axes)
    return voxels, valid


@pytest.mark.parametrize("channels", [1, 3])
def test_scans_of_any_type_in_one_batch(of_all_types: Path, channels: int) -> None:
    settings = config(of_all_types, channels=channels, crop_2d=None)
    types, seen = set(), Counter()
    with CropLoader(settings, seed=1) as loader:
        for _ in range(16):
            made = loader.crops()
            types.add(str(made.voxels.dtype))
            batch = made.to("cpu")
            voxels, valid = expected(loader.plan, settings, batch)
            assert bits(batch.voxels.numpy()) == bits(voxels)
            assert np.array_equal(batch.valid.numpy(), valid)
            seen.update(batch.keys)
    assert types == {"torch.float32"}  # what holds them all
    assert seen.keys() == {f"{name}-{large}" for name in SCANS for large in (False, True)} | {"levels"}


def test_scans_of_one_type_cross_in_it(of_all_types: Path) -> None:
    settings = config(of_all_types, crop_2d=None, batch_3d=1)
    found = {}
    with CropLoader(settings, seed=1) as loader:
        for _ in range(len(SCANS) * 2 + 1):
            made = loader.crops()
            found[made.keys[0]] = str(made.voxels.dtype).removeprefix("torch.")
    for name, kind in SCANS.items():
        own = np.dtype(kind).name
        for large in (False, True):
            assert found[f"{name}-{large}"] == (own if own in DTYPES else "float32")
    assert found["levels"] == "float32"


@pytest.mark.parametrize("channels", [1, 3])
def test_colours(of_colours: Path, channels: int) -> None:
    settings = config(of_colours, channels=channels, crop_3d=None)
    seen = Counter()
    with CropLoader(settings, seed=2) as loader:
        for _ in range(12):
            batch = next(loader)
            voxels, valid = expected(loader.plan, settings, batch)
            assert bits(batch.voxels.numpy()) == bits(voxels)
            seen.update(batch.keys)
            assert np.array_equal(batch.valid.numpy(), valid)
    assert len(seen) == 9


def test_luminance_does_not_depend_on_the_crop() -> None:
    """The same voxel in two crops, or on two machines, is the same number."""
    rng = np.random.default_rng(0)
    scan = rng.integers(0, 255, (3, 5, 31, 37)).astype(np.uint8)
    whole = as_channels(scan, 1)
    for _ in range(200):
        low = [int(rng.integers(0, length)) for length in scan.shape[1:]]
        part = tuple(
            slice(a, int(rng.integers(a + 1, length + 1))) for a, length in zip(low, scan.shape[1:], strict=True)
        )
        where = (slice(None), *part)
        assert np.array_equal(as_channels(scan[where], 1), whole[where])
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    red, green, blue = (weights[each] * scan[each].astype(np.float32) for each in range(3))
    assert np.array_equal(whole[0], red + green + blue)


def test_frames_are_images(of_colours: Path) -> None:
    settings = config(of_colours)
    kinds: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    with CropLoader(settings, seed=3) as loader:
        assert loader.plan.scans == 9
        for _ in range(30):
            batch = next(loader)
            kinds[batch.is_2d].update(batch.keys)
            assert batch.voxels.shape[2:] == ((1, 24, 32) if batch.is_2d else (16, 12, 20))
    assert kinds[False].keys() == {"scan"}
    assert {"video1", "video2"} <= kinds[True].keys()
    assert "scan" not in kinds[True]
    slices = {
        place(seed, (24, 41, 43), (1, 24, 32), np.ones((6, 10, 10), bool), 0.9, []).start[0] for seed in range(400)
    }
    assert slices == set(range(24))  # any of its frames


def of_modalities(folder: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(sum(counts.values()))
    scans = {}
    for modality, count in counts.items():
        for number in range(count):
            voxels = rng.integers(0, 255, (1, 1, 12, 12)).astype(np.uint8)
            scans[f"{modality}{number}"] = Scan(voxels, (1.0, 1.0, 1.0)), modality
    return built(folder, scans, size=7)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two data sets: 30 mr and 6 ct; 10 ct and 4 us."""
    folder = tmp_path_factory.mktemp("mixed")
    return of_modalities(folder / "a", {"mr": 30, "ct": 6}), of_modalities(folder / "b", {"ct": 10, "us": 4})


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_shares_of_the_modalities(mixed: tuple[Path, Path], temperature: float, weight: float) -> None:
    sources = [{"name": "a", "path": mixed[0], "weight": weight}, {"name": "b", "path": mixed[1]}]
    settings = config(
        mixed[0], sources=sources, crop_2d=(8, 8), crop_3d=None, balance="modality", temperature=temperature, batch_2d=8
    )
    plan = SamplingPlan(settings, 4)
    masses = {"mr": 30 * weight, "ct": 6 * weight + 10, "us": 4.0}
    raised = {name: mass**temperature for name, mass in masses.items()}
    names = [sorted(data.manifest.modalities) for data in plan.data]
    rows = [data.samples() for data in plan.data]
    indices = [{(int(r["shard"]), int(r["sample"])): names[n][r["modality"]] for r in rows[n]} for n in range(2)]
    steps = 16 * 256 // 8  # whole blocks of the mixture: its shares are exact there, to within one per part
    draws = [draw for step in range(steps) for draw in plan.draws(step)]
    found = Counter(indices[draw.source][draw.shard, draw.sample] for draw in draws)
    for name, share in raised.items():
        assert abs(found[name] - len(draws) * share / sum(raised.values())) <= 4
    # Within a modality, its sources share by weight and number of scans.
    of_a = sum(draw.source == 0 for draw in draws if indices[draw.source][draw.shard, draw.sample] == "ct")
    assert abs(of_a - found["ct"] * 6 * weight / masses["ct"]) <= 4
    # And within a source, each scan is as likely: visited once before any a second time.
    visits = Counter(draw[2:5] for draw in draws)
    for source in range(2):
        for name in names[source]:
            mine = [count for (s, *where), count in visits.items() if s == source and indices[s][tuple(where)] == name]
            assert max(mine) - min(mine) <= 1


def extreme(kind: str, rng: np.random.Generator) -> np.ndarray:
    shape = (1, 5, 12, 13)
    arrays = {
        "huge": lambda: rng.normal(0, 1e200, shape),
        "ends of float64": lambda: rng.choice([-1.7e308, 1.7e308], shape),
        "ends of float32": lambda: rng.choice(np.array([-3.4e38, 3.4e38], np.float32), shape),
        "denormal": lambda: rng.integers(0, 9, shape) * 5e-324,
        "integers read as float32": lambda: rng.integers(0, 4096, shape, dtype=np.int32).view(np.float32),
        "tiny": lambda: rng.normal(0, 1e-200, shape),
        "one huge value": lambda: np.full(shape, 1e300),
        "one tiny value": lambda: np.full(shape, 1e-40, np.float32),
        "outliers": lambda: np.where(rng.random(shape) < 1e-2, 1e38, rng.normal(0, 1, shape)),
        "64 bits": lambda: rng.integers(-(2**63), 2**63 - 1, shape),
        "float16": lambda: rng.normal(0, 2e4, shape).clip(-65504, 65504).astype(np.float16),
        "one value": lambda: np.full(shape, -7.5),
        "zeros": lambda: np.zeros(shape, np.float32),
    }
    return arrays[kind]()


FINE = ("64 bits", "float16", "one value", "zeros")
REFUSED = ("huge", "ends of float64", "ends of float32", "integers read as float32", "tiny", "one huge value")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("kind", ["denormal", "one tiny value", "outliers", *FINE, *REFUSED])
def test_what_is_stored_has_finite_crops(kind: str, tmp_path: Path) -> None:
    """One scan of garbage that is no NaN must not make every loss one."""
    voxels = extreme(kind, np.random.default_rng(0))
    with ShardWriter(tmp_path / "s.tar", "zstd") as writer:
        try:
            writer.add(Scan(voxels, (1.0, 1.0, 1.0)), "a", "mr", "0" * 32)
        except ReadError:
            assert kind not in FINE
            return
    assert kind not in REFUSED
    assert writer.record is not None
    reader = ShardReader(tmp_path, writer.record)
    assert reader.read(0).tobytes() == voxels.tobytes()
    reader.close()
    for low in LOW:
        for high in HIGH:
            wanted = IntensityConfig(percentiles=(low, high))
            with np.errstate(over="ignore"):  # outliers beyond float32 are clipped
                assert np.isfinite(normalise(voxels, "mr", reader.entries[0].stats, wanted)).all()


def test_a_build_leaves_such_scans_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        np.save(tmp_path / "in" / f"{name}.npy", rng.normal(0, 1, (12, 13)))
    for kind in REFUSED:
        np.save(tmp_path / "in" / f"{kind}.npy", extreme(kind, rng)[0])
    summary = build([tmp_path / "in"], tmp_path / "out", BuildOptions(max_bad=0.9, workers=1))
    assert summary.scans == 3
    assert {line.path for line in read_quarantine(tmp_path / "out")} == {f"{kind}.npy" for kind in REFUSED}
    assert {line.kind for line in read_quarantine(tmp_path / "out")} == {"refused"}
    assert all("float32" in line.reason for line in read_quarantine(tmp_path / "out"))
