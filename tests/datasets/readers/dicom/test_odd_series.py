"""Series that were refused, or read wrongly, for the way they are written: the right values, or the true reason."""

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from scanfoundry.datasets.readers.dicom import group, read_volume, scan_headers
from scanfoundry.datasets.readers.scan import ReadError, Scan

LPS = np.array([-1.0, -1.0, 1.0])
MR = {"Modality": "MR", "SOPClassUID": MRImageStorage, "RescaleIntercept": 0}
PT = {"Modality": "PT", "SOPClassUID": PositronEmissionTomographyImageStorage, "RescaleIntercept": 0}


def line(count: int, step: float = 2.0) -> list[tuple[float, float, float]]:
    return [(-30.0, 12.5, 70.25 + step * k) for k in range(count)]


def plane_at(scan: Scan, position: tuple[float, ...]) -> np.ndarray:
    """The plane whose first pixel lies at `position` (axial), as the file has it."""
    assert scan.affine is not None
    _, y, z, _ = np.linalg.inv(scan.affine) @ [*(LPS * position), 1.0]
    plane = scan.voxels[0, round(z)]
    return plane if round(y) == 0 else plane[::-1]


def refused(root: Path) -> str:
    sources, _ = group(scan_headers(sorted(root.rglob("*.dcm"))), root)
    with pytest.raises(ReadError) as error:
        [list(read_volume(source)) for source in sources]
    return str(error.value)


@pytest.mark.parametrize("base", [1e-4, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_small_slopes_of_a_pet_are_each_slices_own(
    tmp_path: Path, dicom: SimpleNamespace, base: float, spread: float
) -> None:
    slopes = [f"{base * (1 + spread * (k % 3)):.6g}" for k in range(6)]
    dicom.slices(tmp_path, line(6), each=lambda n: {"RescaleSlope": slopes[n]}, **PT)
    (scan,), _ = dicom.load(tmp_path)
    for number, position in enumerate(line(6)):
        expected = dicom.texture(40, 36, number) * float(slopes[number])
        assert np.abs(plane_at(scan, position) - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("numbers", [[None] * 7, [1] * 7, [0] * 7, [4, 1, 7, 3, 6, 2, 5], [1, 3, 5, 7, 2, 4, 6]])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_positions_stand_in_for_instance_numbers(
    tmp_path: Path, dicom: SimpleNamespace, numbers: list[int | None], syntax: str
) -> None:
    dicom.slices(tmp_path / "plain", line(7))
    (plain,), _ = dicom.load(tmp_path / "plain")
    for number, path in enumerate(dicom.slices(tmp_path / "odd", line(7), syntax=syntax)):
        dataset = pydicom.dcmread(path)
        dataset.InstanceNumber = numbers[number]
        dataset.save_as(path)
    (scan,), _ = dicom.load(tmp_path / "odd")
    assert np.array_equal(scan.voxels, plain.voxels)
    assert np.array_equal(scan.affine, plain.affine)


def test_a_tilted_gantry_with_shuffled_numbers(tmp_path: Path, dicom: SimpleNamespace) -> None:
    orientation = (1.0, 0.0, 0.0, 0.0, np.cos(0.3), -np.sin(0.3))
    for folder, numbers in (("plain", range(1, 9)), ("odd", [3, 1, 8, 2, 6, 4, 7, 5])):
        positions = [(0.0, 0.0, 2.5 * k) for k in range(8)]
        dicom.slices(tmp_path / folder, positions, orientation, each=lambda n, m=numbers: {"InstanceNumber": m[n]})
    (plain,), _ = dicom.load(tmp_path / "plain")
    (odd,), _ = dicom.load(tmp_path / "odd")
    assert np.array_equal(odd.voxels, plain.voxels)
    assert np.allclose(odd.affine, plain.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("ConvolutionKernel", "B30f", "B70f"), ("KVP", 80, 140), ("FrameOfReferenceUID", "1.2.3.9", "1.2.3.10"),
     ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]), ("SliceThickness", 2, 4),
     ("SeriesDescription", "thin", "thick"), ("ContrastBolusAgent", "", "Iomeron"), ("SeriesNumber", 3, 4)],
)  # fmt: skip
def test_slices_that_differ_are_no_volume(
    tmp_path: Path, dicom: SimpleNamespace, name: str, low: Any, high: Any
) -> None:
    dicom.slices(tmp_path / "halves", line(8), each=lambda n: {name: low if n < 4 else high})
    dicom.slices(tmp_path / "in turn", line(8), each=lambda n: {name: high if n % 2 else low})
    dicom.slices(tmp_path / "one", line(8), each=lambda n: {name: high if n == 7 else low})
    for folder in ("halves", "in turn", "one"):
        assert refused(tmp_path / folder) == f"mixed slices: they differ in {name}"


def test_what_may_change_within_a_volume(tmp_path: Path, dicom: SimpleNamespace) -> None:
    """Beds of a PET, slabs of a CT, beats of an MR, digits of a number."""
    dicom.slices(tmp_path / "a", line(8), each=lambda n: {"FrameReferenceTime": 5000 * (n // 4)}, **PT)
    slabs = [{"AcquisitionNumber": 1 + n // 4, "AcquisitionTime": f"10100{n}"} for n in range(8)]
    dicom.slices(tmp_path / "b", line(8), each=lambda n: slabs[n])
    dicom.slices(tmp_path / "c", line(8), each=lambda n: {"TriggerTime": [10, 70, 130][n % 3]}, **MR)
    dicom.slices(tmp_path / "d", line(8), each=lambda n: {"KVP": ["120", "120.0"][n % 2], "Exposure": n})
    for folder in "abcd":
        assert [scan.voxels.shape[1] for scan in dicom.load(tmp_path / folder)[0]] == [8]


def test_two_dimensions_of_acquisitions(tmp_path: Path, dicom: SimpleNamespace) -> None:
    """Echoes by time: each of four volumes is one echo of one time, whatever the numbers are."""
    numbers = np.random.default_rng(3).permutation(20) + 1

    def tags(n: int) -> dict[str, Any]:
        return {
            "EchoTime": [5, 30][n // 5 % 2],
            "TemporalPositionIdentifier": 1 + n // 10,
            "InstanceNumber": int(numbers[n]),
        }

    dicom.slices(tmp_path, line(5) * 4, each=tags, **MR)
    scans, _ = dicom.load(tmp_path)
    found = [
        {
            next(n for n in range(20) if np.array_equal(plane_at(scan, p), dicom.texture(40, 36, n))) // 5
            for p in line(5)
        }
        for scan in scans
    ]
    assert sorted(map(sorted, found)) == [[0], [1], [2], [3]]


def test_attributes_that_contradict_each_other_are_refused(tmp_path: Path, dicom: SimpleNamespace) -> None:
    dicom.slices(
        tmp_path,
        line(6) * 2,
        each=lambda n: {"TriggerTime": 10 + 300 * (n // 6), "AcquisitionNumber": 1 + (n // 6 + n) % 2},
        **MR,
    )
    assert "put them together in different ways" in refused(tmp_path)


def frames(dicom: SimpleNamespace, order: list[int], volumes: int) -> Dataset:
    """An enhanced object whose frames lie in `order`."""
    pixels = np.stack([dicom.texture(40, 36, number) for number in range(6 * volumes)])
    dataset = dicom.enhanced([(0.0, 0.0, 2.0 * (n % 6)) for n in range(6 * volumes)], pixels)
    groups = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [groups[number] for number in order]
    dataset.PixelData = pixels[order].astype("<i2").tobytes()
    return dataset


def volume_of(scan: Scan, dicom: SimpleNamespace, volumes: int) -> set[int]:
    """Which volumes the planes of the scan are of; the plane of each position must be there."""
    candidates = [dicom.texture(40, 36, number) for number in range(6 * volumes)]
    places = [plane_at(scan, (0.0, 0.0, 2.0 * k)) for k in range(6)]
    return {next(v for v in range(volumes) if np.array_equal(candidates[6 * v + k], p)) for k, p in enumerate(places)}


@pytest.mark.parametrize("seed", range(3))
def test_frames_in_any_order_are_dealt_by_their_dimensions(tmp_path: Path, dicom: SimpleNamespace, seed: int) -> None:
    order = [int(n) for n in np.random.default_rng(seed).permutation(18)]
    dataset = frames(dicom, order, 3)
    if seed == 1:  # told by the dimension indices alone
        pointers = [Dataset(), Dataset()]
        pointers[0].DimensionIndexPointer, pointers[1].DimensionIndexPointer = 0x00209057, 0x00189345
        dataset.DimensionIndexSequence = pointers
        for group_of_frame in dataset.PerFrameFunctionalGroupsSequence:
            del group_of_frame.FrameContentSequence[0].TemporalPositionIndex
    dicom.save(dataset, tmp_path / "IM1.dcm")
    scans, _ = dicom.load(tmp_path)
    assert sorted(volume_of(scan, dicom, 3).pop() for scan in scans if len(volume_of(scan, dicom, 3)) == 1) == [0, 1, 2]


def test_frames_that_nothing_tells_apart_or_of_two_stacks(tmp_path: Path, dicom: SimpleNamespace) -> None:
    dataset = frames(dicom, [int(n) for n in np.random.default_rng(0).permutation(12)], 2)
    for group_of_frame in dataset.PerFrameFunctionalGroupsSequence:
        del group_of_frame.FrameContentSequence[0].TemporalPositionIndex
    dicom.save(dataset, tmp_path / "a" / "IM1.dcm")
    assert "nothing tells" in refused(tmp_path / "a")
    dataset = frames(dicom, list(range(6)), 1)
    for number, group_of_frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        group_of_frame.FrameContentSequence[0].StackID = str(1 + number // 3)
    dicom.save(dataset, tmp_path / "b" / "IM1.dcm")
    assert refused(tmp_path / "b") == "mixed slices: they differ in StackID"


def vframe(dicom: SimpleNamespace, volume: int, tiles: int, orientation: list[float], normal: np.ndarray) -> Dataset:
    """United Imaging's layout: tiles row by row, ceil(sqrt(n)) to a row, each with a position in (0065,1051)."""
    wide = int(np.ceil(np.sqrt(tiles)))
    high = int(np.ceil(tiles / wide))
    mosaic = np.zeros((high * 40, wide * 36), np.uint16)
    items = []
    for number in range(tiles):
        row, column = divmod(number, wide)
        mosaic[row * 40 : row * 40 + 40, column * 36 : column * 36 + 36] = dicom.texture(40, 36, volume * 50 + number)
        item = Dataset()
        item.AcquisitionDate, item.AcquisitionTime, item.AcquisitionDuration = "20200101", f"1010{number:02}.5", 0.03
        item.ImagePositionPatient = [float(f"{x:.6f}") for x in np.array([-30.0, 12.5, 70.0]) + 3.0 * number * normal]
        items.append(item)
    dataset = dicom.header(
        SOPClassUID=MRImageStorage, Modality="MR", Manufacturer="UIH", ImageType=["ORIGINAL", "PRIMARY", "M", "VFRAME"],
        PixelSpacing=[1.5, 1.2], SliceThickness=3, ImageOrientationPatient=orientation, InstanceNumber=volume + 1,
    )  # fmt: skip
    dataset.add_new(0x00650010, "LO", "Image Private Header")
    dataset.add_new(0x00651009, "FD", [0.0, 1000.0][volume % 2])
    dataset.add_new(0x00651050, "DS", str(tiles))
    dataset.add_new(0x00651051, "SQ", Sequence(items))
    dicom.put_pixels(dataset, mosaic)
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless])
@pytest.mark.parametrize(("tiles", "seed"), [(7, 0), (12, 1), (16, 2)])
def test_united_imagings_tiles_lie_where_each_says(
    tmp_path: Path, dicom: SimpleNamespace, syntax: str, tiles: int, seed: int
) -> None:
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    orientation = [float(f"{x:.9f}") for x in (*axes[0], *axes[1])]
    normal = np.cross(axes[0], axes[1]) * (-1) ** seed
    for volume in range(3):
        dicom.save(vframe(dicom, volume, tiles, orientation, normal), tmp_path / f"{volume}.dcm", syntax)
    scans, refusals = dicom.load(tmp_path)
    assert (len(scans), refusals) == (3, [])
    for volume, scan in enumerate(scans):
        assert sorted(scan.voxels.shape[1:]) == sorted((tiles, 40, 36))
        assert scan.spacing == pytest.approx((3.0, 1.5, 1.2), abs=1e-4)
        for number in range(tiles):
            pixels = dicom.texture(40, 36, volume * 50 + number)
            for row, column in ((0, 0), (39, 0), (11, 30)):
                point = np.array([-30.0, 12.5, 70.0]) + 3.0 * number * normal
                point = point + 1.2 * column * axes[0] + 1.5 * row * axes[1]
                x, y, z = np.round(np.linalg.inv(scan.affine) @ [*(LPS * point), 1.0])[:3].astype(int)
                assert scan.voxels[0, z, y, x] == pixels[row, column]


def test_tiles_that_do_not_fit_are_refused(tmp_path: Path, dicom: SimpleNamespace) -> None:
    good = vframe(dicom, 0, 7, list(dicom.axial), np.array([0.0, 0.0, 1.0]))
    del good[0x00651051].value[6]
    dicom.save(good, tmp_path / "a" / "1.dcm")
    assert refused(tmp_path / "a") == "tiles whose number or positions are not given"
    high = vframe(dicom, 0, 7, list(dicom.axial), np.array([0.0, 0.0, 1.0]))
    dicom.put_pixels(high, np.zeros((121, 108), np.uint16))
    dicom.save(high, tmp_path / "b" / "1.dcm")
    assert refused(tmp_path / "b") == "7 tiles do not fit into 121x108 pixels"
    uneven = vframe(dicom, 0, 7, list(dicom.axial), np.array([0.0, 0.0, 1.0]))
    uneven[0x00651051].value[3].ImagePositionPatient = [-30.0, 12.5, 80.2]
    dicom.save(uneven, tmp_path / "c" / "1.dcm")
    assert "slice spacing varies" in refused(tmp_path / "c")


def loosened(path: Path) -> None:
    """Writes the pixel element of an explicit file as an implicit one: tag and length, no VR."""
    content = path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\x00OW\0\0")
    (length,) = struct.unpack_from("<I", content, at + 8)
    path.write_bytes(content[: at + 4] + struct.pack("<I", length) + content[at + 12 :])


def test_pixels_written_implicitly_in_an_explicit_file(tmp_path: Path, dicom: SimpleNamespace) -> None:
    dicom.slices(tmp_path / "plain", line(5))
    for path in dicom.slices(tmp_path / "loose", line(5)):
        loosened(path)
    loosened(dicom.slices(tmp_path / "one", line(1), pixels=lambda n: dicom.texture(30, 20, 4))[0])
    (plain,), _ = dicom.load(tmp_path / "plain")
    (loose,), refusals = dicom.load(tmp_path / "loose")
    assert (np.array_equal(loose.voxels, plain.voxels), refusals) == (True, [])
    (one,), _ = dicom.load(tmp_path / "one")
    assert np.array_equal(one.voxels[0, 0], dicom.texture(30, 20, 4) - 1024)
    (tmp_path / "one" / "0000.dcm").write_bytes((tmp_path / "one" / "0000.dcm").read_bytes()[:-10])
    (source,), _ = group(scan_headers([tmp_path / "one" / "0000.dcm"]), tmp_path)
    assert scan_headers(source.paths)[0].pixel_length == 1200


@pytest.mark.parametrize("damage", ["rotten", "cut", "zeros", "deflated"])
def test_a_damaged_copy_that_comes_first_displaces_none(tmp_path: Path, dicom: SimpleNamespace, damage: str) -> None:
    syntax = {"rotten": JPEG2000Lossless, "cut": RLELossless, "deflated": DeflatedExplicitVRLittleEndian}.get(damage)
    files = dicom.slices(tmp_path / "b", line(5), syntax=syntax or ExplicitVRLittleEndian)
    content = bytearray(files[2].read_bytes())
    if damage == "rotten":
        start = content.index(b"\xff\x4f\xff\x51")
        content[start + 100 : start + 400] = bytes(300)
        content[start : start + 60] = bytes(60)
    elif damage == "zeros":
        content[-1500:] = bytes(1500)
    else:
        content = content[:-200]
    (tmp_path / "a.dcm").write_bytes(content)
    scans, refusals = dicom.load(tmp_path)
    assert [scan.voxels.shape for scan in scans] == [(1, 5, 40, 36)]
    assert np.array_equal(plane_at(scans[0], line(5)[2]), dicom.texture(40, 36, 2) - 1024)
    assert refusals == [("a.dcm", "another file holds the same instance: b/0002.dcm", "skipped")] or (
        damage == "deflated" and refusals == [("a.dcm", "damaged DICOM header", "refused")]
    )


def two_of_one_uid(root: Path, dicom: SimpleNamespace, **values: list[Any]) -> list[list[np.ndarray]]:
    """Two acquisitions whose slices share places, numbers and UIDs, as some anonymisers write them; names are mixed."""
    pixels = [[dicom.texture(40, 36, 20 * a + k) for k in range(5)] for a in range(2)]
    for a in range(2):
        told = {name: several[a] for name, several in values.items()}
        paths = dicom.slices(root / "x", line(5), pixels=lambda k, a=a: pixels[a][k], SOPInstanceUID="1.2.3", **told)
        for k, path in enumerate(paths):
            path.rename(root / f"{k}{(a + k) % 2}.dcm")
    return pixels


@pytest.mark.parametrize("intercepts", [[-1024, -1024], [-1024, -1000]])
def test_slices_that_share_a_uid_and_a_place_are_no_copies(
    tmp_path: Path, dicom: SimpleNamespace, intercepts: list[int]
) -> None:
    two_of_one_uid(tmp_path, dicom, RescaleIntercept=intercepts)
    assert "at each position" in refused(tmp_path) or "rescale" in refused(tmp_path)


def test_slices_that_share_a_uid_are_dealt_by_what_tells_them_apart(tmp_path: Path, dicom: SimpleNamespace) -> None:
    pixels = two_of_one_uid(tmp_path, dicom, ConvolutionKernel=["B30f", "B70f"])
    scans, refusals = dicom.load(tmp_path)
    assert refusals == []
    found = [[plane_at(scan, place).tolist() for place in line(5)] for scan in scans]
    assert sorted(found) == sorted([(one - 1024).tolist() for one in several] for several in pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEG2000])
def test_copies_in_another_syntax_are_copies(tmp_path: Path, dicom: SimpleNamespace, syntax: str) -> None:
    """A lossy copy stands back behind the other, wherever it lies."""
    for number, path in enumerate(dicom.slices(tmp_path / "b", line(5))):
        data = pydicom.dcmread(path)
        quality = {"j2k_cr": [4]} if syntax == JPEG2000 else {}
        data.compress(syntax, generate_instance_uid=False, **quality)
        (tmp_path / "a").mkdir(exist_ok=True)
        data.save_as(tmp_path / "a" / f"{number}.dcm")
    (scan,), refusals = dicom.load(tmp_path)
    for number, place in enumerate(line(5)):
        assert np.array_equal(plane_at(scan, place), dicom.texture(40, 36, number) - 1024)
    assert len(refusals) == 5


def test_a_copy_with_a_hole_stands_back(tmp_path: Path, dicom: SimpleNamespace) -> None:
    """Blocks that a transfer lost are zeros in the middle; the slice itself ends in zeros too."""

    def dark(number: int) -> np.ndarray:
        pixels = dicom.texture(40, 36, number)
        pixels[30:] = 0
        return pixels

    files = dicom.slices(tmp_path / "b", line(5), pixels=dark)
    content = bytearray(files[2].read_bytes())
    content[-2400:-1900] = bytes(500)
    (tmp_path / "a.dcm").write_bytes(content)
    (scan,), refusals = dicom.load(tmp_path)
    assert np.array_equal(plane_at(scan, line(5)[2]), dark(2) - 1024)
    assert refusals == [("a.dcm", "another file holds the same instance: b/0002.dcm", "skipped")]


def round_view(number: int) -> np.ndarray:
    """A CT's round field of view: padding of -3024 HU outside."""
    y, x = np.mgrid[:64, :64]
    pixels = (1000 + 40 * np.sin(x / 5 + number)).astype(np.int16)
    pixels[(y - 32) ** 2 + (x - 32) ** 2 > 900] = -2000
    return pixels


def test_padding_of_a_lossy_ct_is_air_as_a_whole(tmp_path: Path, dicom: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)

    def blurred(number: int) -> np.ndarray:
        return round_view(number) + rng.integers(-9, 10, (64, 64)).astype(np.int16)

    dicom.slices(tmp_path / "told", line(4), pixels=blurred, PixelPaddingValue=-2000, LossyImageCompression="01")
    dicom.slices(tmp_path / "not told", line(4), pixels=blurred, PixelPaddingValue=-2000)
    for folder in ("told", "not told"):
        (scan,), _ = dicom.load(tmp_path / folder)
        outside = scan.voxels[0][:, :2, :2]
        assert (outside == -1024).all()
        assert (scan.voxels[0, :, 32, 32] > -200).all()


def test_padding_of_a_range(tmp_path: Path, dicom: SimpleNamespace) -> None:
    def padded(number: int) -> np.ndarray:
        pixels = dicom.texture(40, 36, number)
        pixels[:2], pixels[2:4], pixels[4] = -2000, -1950, -100
        return pixels

    dicom.slices(tmp_path, line(4), pixels=padded, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900)
    (scan,), _ = dicom.load(tmp_path)
    assert np.unique(scan.voxels)[:2].tolist() == [-1124, -1024]
    assert np.count_nonzero(scan.voxels == -1024) == 4 * 4 * 36


def test_captures_among_the_slices_leave_the_volume_alone(tmp_path: Path, dicom: SimpleNamespace) -> None:
    dicom.slices(tmp_path / "a", line(5))
    capture = {"SOPClassUID": SecondaryCaptureImageStorage, "InstanceNumber": 9}
    dicom.slices(tmp_path / "b", [line(5)[2]], **capture)
    scans, refusals = dicom.load(tmp_path)
    assert sorted(scan.voxels.shape[1] for scan in scans) == [1, 5]
    assert refusals == []


def test_a_copy_with_another_zero_is_a_copy(tmp_path: Path, dicom: SimpleNamespace) -> None:
    files = dicom.slices(tmp_path / "a", [(0.0, 0.0, 2.0 * k) for k in range(4)])
    for number, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = ["-0.0", "-0", str(2.0 * number)]
        dicom.save(dataset, tmp_path / "b" / path.name)
    scans, refusals = dicom.load(tmp_path)
    assert [scan.voxels.shape[1] for scan in scans] == [4]
    assert len(refusals) == 4


def test_lossy_jpeg2000_is_read_and_compared(tmp_path: Path, dicom: SimpleNamespace) -> None:
    for path in dicom.slices(tmp_path, line(4), pixels=lambda n: dicom.texture(64, 64, n)):
        dataset = pydicom.dcmread(path)
        dataset.compress(JPEG2000, j2k_cr=[4], generate_instance_uid=False)
        dataset.save_as(path)
    (scan,), _ = dicom.load(tmp_path)
    for number, position in enumerate(line(4)):
        decoded = pydicom.dcmread(tmp_path / f"{number:04}.dcm").pixel_array
        assert np.array_equal(plane_at(scan, position), decoded - 1024)
