"""NPY and NPZ: entries as numpy has them, one in memory at a time, and no pickles."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from scanfoundry.datasets.readers import guard
from scanfoundry.datasets.readers.arrays import read_array
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

RNG = np.random.default_rng(0)


def scans(path: Path) -> list[Scan]:
    return list(read_array(Source(path.parent, "array", path.name, (path.name,), 0, 0)))


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u2", "f4", "f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_keeps_the_order_of_its_axes(tmp_path: Path, dtype: str, order: str) -> None:
    for shape in [(9, 11), (9, 11, 3), (9, 11, 1), (5, 9, 11), (5, 9, 11, 3)]:
        array = np.asarray(RNG.integers(0, 99, shape).astype(dtype), order=order)
        np.save(tmp_path / "a.npy", array)
        (scan,) = scans(tmp_path / "a.npy")
        coloured = array if shape[-1] in (1, 3) else array[..., None]
        volume = coloured if coloured.ndim == 4 else coloured[None]
        assert np.array_equal(scan.voxels, np.moveaxis(volume, -1, 0))
        assert scan.voxels.dtype.isnative
        assert (scan.spacing, scan.affine, scan.part, scan.patient) == ((1.0, 1.0, 1.0), None, "", "")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays(np.int16, array_shapes(min_dims=3, max_dims=4, min_side=5, max_side=12)),
    st.booleans(),
    st.sampled_from(["C", "F"]),
)
def test_any_stack_comes_back_entry_by_entry(tmp_path: Path, stack: np.ndarray, packed: bool, order: str) -> None:
    stack = np.asarray(stack, order=order)  # type: ignore[call-overload]
    save = np.savez_compressed if packed else np.savez
    save(tmp_path / "a.npz", val_images=stack, val_labels=np.arange(len(stack))[:, None])
    found = scans(tmp_path / "a.npz")
    assert len(found) == len(stack)
    for number, (scan, entry) in enumerate(zip(found, stack, strict=True)):
        assert np.array_equal(scan.voxels[0], entry if entry.ndim == 3 else entry[None])
        assert scan.part == scan.patient == f"val-{number}"
        assert scan.split == "val"
        assert scan.labels.classes == {"label": str(number)}


def test_labels_beside_images(tmp_path: Path) -> None:
    images = RNG.integers(0, 255, (4, 9, 11, 3)).astype(np.uint8)
    masks = np.where(RNG.random((4, 9, 11)) > 0.5, 255, 0).astype(np.uint8)
    ages = np.array([30.5, np.nan, 61, 7])
    several = RNG.integers(0, 2, (4, 3))
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=several, train_masks=masks, test_images=images[:2])
    found = scans(tmp_path / "a.npz")
    assert [scan.split for scan in found] == ["train"] * 4 + ["test"] * 2
    for number in range(4):
        labels = found[number].labels
        assert labels.classes == {f"label-{i}": str(several[number, i]) for i in range(3)}
        assert labels.mask is not None
        assert np.array_equal(labels.mask[0], masks[number] // 255)
    assert found[4].labels.classes == {}
    np.savez(tmp_path / "a.npz", images=images, labels=ages)
    found = scans(tmp_path / "a.npz")
    assert [scan.labels.targets for scan in found] == [{"label": 30.5}, {}, {"label": 61.0}, {"label": 7.0}]
    assert [scan.part for scan in found] == ["0", "1", "2", "3"]
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["a", "b", "a", "ü"]))
    assert [scan.labels.classes["label"] for scan in scans(tmp_path / "a.npz")] == ["a", "b", "a", "ü"]
    np.savez(tmp_path / "a.npz", image=images[0], label=masks[0])
    (scan,) = scans(tmp_path / "a.npz")
    assert scan.labels.mask is not None
    assert np.array_equal(scan.labels.mask[0], masks[0] // 255)


def test_other_archives(tmp_path: Path) -> None:
    first, second = RNG.random((9, 11)).astype(np.float32), RNG.integers(0, 9, (5, 9, 11))
    np.savez(tmp_path / "a.npz", ct=first, mr=second, affine=np.eye(4), spacing=np.ones(3))
    found = scans(tmp_path / "a.npz")
    assert [scan.part for scan in found] == ["ct", "mr"]
    assert np.array_equal(found[0].voxels[0, 0], first)
    assert np.array_equal(found[1].voxels[0], second)


def test_memory_is_of_an_entry_not_of_the_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", train_images=np.zeros((400, 64, 64, 64), np.uint8))  # 105 MB
    source = Source(tmp_path, "array", "a.npz", ("a.npz",), 0, 0)
    tracemalloc.start()
    count = sum(1 for _ in read_array(source))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 400
    assert peak < 8 * 2**20


def test_what_is_refused_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.ones((3, 9, 11), np.uint8)
    cases: dict[str, dict[str, np.ndarray]] = {
        "python objects": {"a": np.array([[object()] * 9] * 9)},
        "NaN": {"train_images": np.full((3, 9, 11), np.nan)},
        "complex": {"image": np.ones((9, 11), complex)},
        "no array that can be": {"spacing": np.ones(3), "affine": np.eye(4)},
        "does not go with": {"train_images": stack, "train_labels": np.ones(2, int)},
        "no stack of images": {"train_images": stack[0]},
        "labels of shape": {"train_images": stack, "train_labels": np.ones((3, 7, 7), int)},
        "shape .2, 3, 9, 11.": {"image": np.ones((2, 3, 9, 11))},
        "whole numbers": {"train_images": stack, "train_masks": stack - 1.5},
        "empty": {"train_images": stack[:, :0]},
    }
    for reason, members in cases.items():
        np.savez(tmp_path / "a.npz", **members)
        with pytest.raises(ReadError, match=reason):
            scans(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.array([{}]))
    with pytest.raises(ReadError, match="python objects"):
        scans(tmp_path / "a.npy")
    monkeypatch.setattr(guard, "RATIO_FROM_BYTES", 2**20)
    np.savez_compressed(tmp_path / "a.npz", train_images=np.zeros((40, 512, 512), np.uint8))
    with pytest.raises(ReadError, match="decompression bomb"):
        scans(tmp_path / "a.npz")
    monkeypatch.setattr(guard, "MAX_BYTES", 1000)
    np.save(tmp_path / "a.npy", np.zeros((40, 512), np.uint8))
    with pytest.raises(ReadError, match="declares"):
        scans(tmp_path / "a.npy")


def test_a_head_that_lies(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((9, 11), np.uint8))
    (tmp_path / "a.npy").write_bytes(buffer.getvalue().replace(b"(9, 11)", b"(9999, 9999)".ljust(7))[: 128 + 99])
    with pytest.raises(ReadError):
        scans(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(buffer.getvalue()[:-5])
    with pytest.raises(ReadError, match="declares 99 bytes of values, it holds 94"):
        scans(tmp_path / "a.npy")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.booleans())
def test_flipped_bytes_are_refused_or_harmless(tmp_path: Path, data: st.DataObject, packed: bool) -> None:
    images = np.random.default_rng(2).integers(0, 255, (3, 9, 11)).astype(np.uint8)
    (np.savez_compressed if packed else np.savez)(tmp_path / "a.npz", train_images=images, train_labels=[0, 1, 0])
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "a.npz").write_bytes(content)
    try:
        found = scans(tmp_path / "a.npz")
    except ReadError:
        return
    # What passed is what was stored (a flip in a date or an attribute of the archive, or in a member's name).
    stored = {image.tobytes() for image in images} | {images.tobytes()}
    assert all(scan.voxels.tobytes() in stored for scan in found)


def test_damage_late_in_a_member_is_seen_before_the_first_scan(tmp_path: Path) -> None:
    images = RNG.integers(0, 255, (50, 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        end = archive.infolist()[0].file_size
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[end - 100] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ReadError, match="CRC"):
        next(read_array(Source(tmp_path, "array", "a.npz", ("a.npz",), 0, 0)))


@pytest.mark.parametrize("name", ["adrenalmnist3d", "adrenalmnist3d_64", "pneumoniamnist_subset"])
def test_medmnist(real_data: Path, name: str) -> None:
    path = real_data / "medmnist" / f"{name}.npz"
    whole = np.load(path)
    expected = ((split, i) for split in ("train", "val", "test") for i in range(len(whole[f"{split}_images"])))
    images = {split: whole[f"{split}_images"] for split in ("train", "val", "test")}
    labels = {split: whole[f"{split}_labels"] for split in ("train", "val", "test")}
    found = read_array(Source(path.parent, "array", path.name, (path.name,), 0, 0))
    for scan, (split, i) in zip(found, expected, strict=True):
        assert (scan.split, scan.part, scan.patient) == (split, f"{split}-{i}", f"{split}-{i}")
        assert np.array_equal(scan.voxels.squeeze(), images[split][i])
        assert scan.voxels.shape[1] == (1 if images[split].ndim == 3 else images[split].shape[1])
        assert scan.labels.classes == {"label": str(labels[split][i, 0])}


def test_patches_with_masks(real_data: Path) -> None:
    path = real_data / "msd_task06_lung_patches2d" / "lung_2mm_patches.npz"
    whole = np.load(path)
    found = scans(path)
    masks = np.concatenate([whole["val_labels"], whole["test_labels"]])
    assert len(found) == 260
    for scan, mask in zip(found, masks, strict=True):
        assert scan.labels.mask is not None
        assert np.array_equal(scan.labels.mask[0], mask)
    assert sum(bool(scan.labels.mask.any()) for scan in found if scan.labels.mask is not None) == 111 + 117
