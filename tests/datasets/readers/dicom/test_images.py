"""Images: values against what was written, colour, frames, spacing, and every refusal."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from scanfoundry.datasets.readers.dicom import group, read_image, scan_headers
from scanfoundry.datasets.readers.scan import ReadError, Scan

STORAGE = "1.2.840.10008.5.1.4.1.1."
SYNTAXES = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEGLSLossless, JPEG2000Lossless,
]  # fmt: skip


def write(dicom: SimpleNamespace, path: Path, pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian,
          bits: int | None = None, **values: Any) -> Path:  # fmt: skip
    dataset = dicom.header(**({"SOPClassUID": STORAGE + "1", "Modality": "CR"} | values))
    dicom.put_pixels(dataset, pixels, bits)
    return dicom.save(dataset, path, syntax)


def read(path: Path) -> Scan:
    (source,), _ = group(scan_headers([path]), path.parent)
    assert source.kind == "dicom-image"
    (scan,) = read_image(source)
    assert scan.voxels.dtype.isnative
    return scan


def refused(path: Path) -> str:
    with pytest.raises(ReadError) as error:
        read(path)
    assert path.name not in str(error.value)
    return str(error.value)


def random(*shape: int, dtype: str = "u2", high: int = 4096) -> np.ndarray:
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) if len(shape) == 2 else 0
    return (np.random.default_rng(0).integers(0, high // 2, shape) + smooth).astype(dtype)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "pixels",
    [random(40, 50), random(40, 50, dtype="u1", high=200), random(40, 50, dtype="i2") - 700, random(4, 40, 50),
     random(40, 50, 3, dtype="u1", high=255), random(3, 40, 50, 3, dtype="u1", high=255)],
    ids=["u2", "u1", "i2", "frames", "rgb", "rgb-frames"],
)  # fmt: skip
def test_every_syntax_and_shape(tmp_path: Path, dicom: SimpleNamespace, syntax: UID, pixels: np.ndarray) -> None:
    scan = read(write(dicom, tmp_path / "x", pixels, syntax))
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    frames = pixels if pixels.ndim == 3 + colour else pixels[None]
    assert np.array_equal(scan.voxels, np.moveaxis(frames, -1, 0) if colour else frames[None])
    assert scan.frames == (len(frames) > 1)
    assert (scan.spacing, scan.affine, scan.orientation) == ((1.0, 1.0, 1.0), None, "")


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
@pytest.mark.parametrize("colour", [False, True])
def test_jpeg_lossless(tmp_path: Path, dicom: SimpleNamespace, capfd: pytest.CaptureFixture, dtype: str,
                       colour: bool) -> None:  # fmt: skip
    """GDCM is the one encoder at hand; its file is where the frames are taken from."""
    if colour and dtype != "u1":
        pytest.skip("colour is 8 bit")
    pixels = random(40, 50, *[3] * colour, dtype=dtype, high=250)
    if dtype == "i2":
        pixels -= 100
    image = SimpleITK.GetImageFromArray(pixels, isVector=colour)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(tmp_path / "x.dcm"))
    writer.Execute(image)
    assert scan_headers([tmp_path / "x.dcm"])[0].syntax == JPEGLosslessSV1
    capfd.readouterr()
    scan = read(tmp_path / "x.dcm")
    assert np.array_equal(scan.voxels[:, 0], np.moveaxis(pixels, -1, 0) if colour else pixels[None])
    assert capfd.readouterr().err == ""


def test_modality_table_and_slope(tmp_path: Path, dicom: SimpleNamespace) -> None:
    pixels = random(20, 30)
    scan = read(write(dicom, tmp_path / "a", pixels, RescaleSlope=2, RescaleIntercept=-1000))
    assert np.array_equal(scan.voxels[0, 0], pixels.astype(int) * 2 - 1000)
    assert scan.voxels.dtype == np.int16
    half = read(write(dicom, tmp_path / "b", pixels, RescaleSlope="0.3", RescaleIntercept=1))
    assert half.voxels.dtype == np.float32
    assert np.allclose(half.voxels[0, 0], pixels * 0.3 + 1)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], [int(v) ** 2 % 65536 for v in range(4096)]
    table["LUTDescriptor"].VR, table["LUTData"].VR, table.ModalityLUTType = "US", "US", "US"
    looked_up = read(write(dicom, tmp_path / "c", pixels, ModalityLUTSequence=[table]))
    assert np.array_equal(looked_up.voxels[0, 0], pixels.astype(int) ** 2 % 65536)


def test_a_voi_table_is_applied_and_a_window_is_not(tmp_path: Path, dicom: SimpleNamespace) -> None:
    pixels = random(20, 30)
    window = read(write(dicom, tmp_path / "a", pixels, WindowCenter=100, WindowWidth=20))
    assert np.array_equal(window.voxels[0, 0], pixels)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], [int(v) ** 2 // 4096 for v in range(4096)]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    expected = pixels.astype(int) ** 2 // 4096
    plain = read(write(dicom, tmp_path / "b", pixels, VOILUTSequence=[table]))
    assert np.array_equal(plain.voxels[0, 0], expected)
    turned = {"VOILUTSequence": [table], "PhotometricInterpretation": "MONOCHROME1"}
    assert np.array_equal(read(write(dicom, tmp_path / "c", pixels, **turned)).voxels[0, 0], 4095 - expected)


def test_monochrome1_is_turned_where_values_are_brightness(tmp_path: Path, dicom: SimpleNamespace) -> None:
    pixels = random(20, 30)
    one = {"PhotometricInterpretation": "MONOCHROME1"}
    assert np.array_equal(read(write(dicom, tmp_path / "a", pixels, bits=12, **one)).voxels[0, 0], 4095 - pixels)
    scaled = read(write(dicom, tmp_path / "b", pixels, bits=12, RescaleSlope=2, RescaleIntercept=5, **one))
    assert np.array_equal(scaled.voxels[0, 0], 2 * (4095 - pixels.astype(int)) + 5)
    signed = read(write(dicom, tmp_path / "s", pixels.astype("i2") - 2048, bits=12, **one))
    assert np.array_equal(signed.voxels[0, 0], 2047 - pixels.astype(int))
    ct = read(write(dicom, tmp_path / "c", pixels, bits=12, SOPClassUID=STORAGE + "2", Modality="CT", **one))
    assert np.array_equal(ct.voxels[0, 0], pixels)


@pytest.mark.parametrize("planar", [0, 1])
def test_planar_configuration(tmp_path: Path, dicom: SimpleNamespace, planar: int) -> None:
    pixels = random(20, 30, 3, dtype="u1", high=255)
    dataset = dicom.header(SOPClassUID=STORAGE + "7", Modality="OT")
    dicom.put_pixels(dataset, pixels)
    dataset.PlanarConfiguration = planar
    dataset.PixelData = (np.moveaxis(pixels, -1, 0) if planar else pixels).tobytes()
    assert np.array_equal(read(dicom.save(dataset, tmp_path / "x")).voxels[:, 0], np.moveaxis(pixels, -1, 0))


def test_ybr_becomes_rgb(tmp_path: Path, dicom: SimpleNamespace) -> None:
    grey = np.stack([random(20, 30, dtype="u1", high=250), *[np.full((20, 30), 128, np.uint8)] * 2], axis=-1)
    scan = read(write(dicom, tmp_path / "x", grey, PhotometricInterpretation="YBR_FULL", SOPClassUID=STORAGE + "6.1"))
    assert np.abs(scan.voxels[:, 0].astype(int) - grey[..., 0]).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(tmp_path: Path, dicom: SimpleNamespace, bits: int) -> None:
    pixels = random(20, 30, dtype="u1", high=250)
    values = {"PhotometricInterpretation": "PALETTE COLOR"}
    tables = [np.random.default_rng(c).integers(0, 256, 256) * (1 if bits == 8 else 257) for c in range(3)]
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        values[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        values[f"{name}PaletteColorLookupTableData"] = table.astype(f"<u{bits // 8}").tobytes()
    dataset = dicom.header(SOPClassUID=STORAGE + "6.1", Modality="US", **values)
    for name in ("Red", "Green", "Blue"):
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    dicom.put_pixels(dataset, pixels)
    scan = read(dicom.save(dataset, tmp_path / "x"))
    assert np.array_equal(scan.voxels[:, 0], np.stack([table[pixels] for table in tables]))
    assert scan.voxels.dtype == (np.uint8 if bits == 8 else np.uint16)


def test_one_bit_and_thirty_two(tmp_path: Path, dicom: SimpleNamespace) -> None:
    bitmap = random(16, 24, dtype="u1", high=250) % 2
    dataset = dicom.header(SOPClassUID=STORAGE + "7.1", Modality="OT")
    dicom.put_pixels(dataset, bitmap)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
    dataset.PixelData = np.packbits(bitmap.ravel(), bitorder="little").tobytes()
    assert np.array_equal(read(dicom.save(dataset, tmp_path / "1")).voxels[0, 0], bitmap)
    wide = random(16, 24).astype("u4") * 100_000
    assert np.array_equal(read(write(dicom, tmp_path / "32", wide)).voxels[0, 0], wide)


def test_spacing_comes_from_where_the_kind_of_image_keeps_it(tmp_path: Path, dicom: SimpleNamespace) -> None:
    pixels = random(20, 30)
    imager = write(dicom, tmp_path / "dx", pixels, ImagerPixelSpacing=[0.2, 0.1])
    assert read(imager).spacing == (1.0, 0.2, 0.1)
    both = write(dicom, tmp_path / "both", pixels, ImagerPixelSpacing=[0.2, 0.1], PixelSpacing=[0.15, 0.14])
    assert read(both).spacing == (1.0, 0.15, 0.14)
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    doppler = Dataset()
    doppler.PhysicalUnitsXDirection, doppler.PhysicalUnitsYDirection = 4, 7
    doppler.PhysicalDeltaX = doppler.PhysicalDeltaY = 9.0
    us = {"SOPClassUID": STORAGE + "6.1", "Modality": "US"}
    one = write(dicom, tmp_path / "us", pixels, SequenceOfUltrasoundRegions=[region, doppler], **us)
    assert read(one).spacing == pytest.approx((1.0, 0.3, 0.2))
    nothing = write(dicom, tmp_path / "no", pixels, PixelSpacing=[0, 0])
    assert read(nothing).spacing == (1.0, 1.0, 1.0)


def test_refusals(tmp_path: Path, dicom: SimpleNamespace) -> None:
    pixels, frames = random(40, 50), random(3, 40, 50)
    assert refused(write(dicom, tmp_path / "flat", np.full((20, 30), 7, np.uint16))) == "every pixel has the same value"
    plain = write(dicom, tmp_path / "short", pixels)
    plain.write_bytes(plain.read_bytes()[:-50])
    assert refused(plain) == "truncated: 4000 bytes of pixels declared, 3950 in the file"
    dataset = dicom.header(SOPClassUID=STORAGE + "1", Modality="CR")
    dicom.put_pixels(dataset, frames)
    dataset.NumberOfFrames = 9
    assert (
        refused(dicom.save(dataset, tmp_path / "lie")) == "truncated: 36000 bytes of pixels expected, 12000 in the file"
    )
    dicom.put_pixels(dataset, frames)
    dicom.save(dataset, tmp_path / "lie2", JPEG2000Lossless)
    dataset.NumberOfFrames = 9
    assert refused(dicom.save(dataset, tmp_path / "lie3")) != ""
    cut = write(dicom, tmp_path / "cut", frames, JPEG2000Lossless)
    cut.write_bytes(cut.read_bytes()[:-2000])
    assert refused(cut).startswith("truncated: compressed pixels end")
    rotten = write(dicom, tmp_path / "rotten", pixels, JPEGLSLossless)
    content = rotten.read_bytes()
    start = content.index(b"\xff\xd8\xff")
    rotten.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
    assert refused(rotten) == "compressed pixels cannot be decoded"
    dicom.put_pixels(dataset, pixels)
    del dataset.NumberOfFrames
    dataset.PixelData, dataset["PixelData"].VR = encapsulate([b"\0\1" * 40]), "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    dataset.save_as(tmp_path / "video", enforce_file_format=True)
    assert refused(tmp_path / "video") == "pixels in a transfer syntax that cannot be decoded"


def test_padding_of_a_single_ct_slice_becomes_air(tmp_path: Path, dicom: SimpleNamespace) -> None:
    pixels = random(20, 30).astype("i2")
    pixels[:5] = -2000
    ct = {"SOPClassUID": STORAGE + "2", "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}
    scan = read(write(dicom, tmp_path / "x", pixels, PixelPaddingValue=-2000, **ct))
    assert scan.modality == "ct"
    assert np.array_equal(scan.voxels[0, 0], np.maximum(pixels, 0) - 1024)
