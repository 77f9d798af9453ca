"""TIFF: what pillow and tifffile wrote comes back, a third dimension only where the file vouches for it."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from scanfoundry.datasets.readers import guard
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source
from scanfoundry.datasets.readers.tiff import read_tiff

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (21, 33)).astype(np.uint8)
COLOUR = RNG.integers(0, 255, (21, 33, 3)).astype(np.uint8)
STACK = RNG.integers(0, 60000, (5, 21, 33)).astype(np.uint16)


def scans(path: Path) -> list[Scan]:
    return list(read_tiff(Source(path.parent, "tiff", path.name, (path.name,), 0, 0)))


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i2", "f4", "f8"])
@pytest.mark.parametrize("tiled", [False, True])
def test_grey_and_colour_of_any_depth(tmp_path: Path, compression: str | None, dtype: str, tiled: bool) -> None:
    path, how = tmp_path / "a.tif", {"tile": (16, 16)} if tiled else {"rowsperstrip": 5}
    order = ">" if dtype.startswith(">") else "<"
    tifffile.imwrite(path, STACK[0].astype(dtype), compression=compression, byteorder=order, **how)
    (scan,) = scans(path)
    assert scan.voxels.shape == (1, 1, 21, 33)
    assert np.array_equal(scan.voxels[0, 0], STACK[0].astype(dtype))
    assert scan.voxels.dtype.isnative
    tifffile.imwrite(path, COLOUR.astype(dtype), photometric="rgb", compression=compression, byteorder=order, **how)
    (scan,) = scans(path)
    assert np.array_equal(scan.voxels[:, 0], np.moveaxis(COLOUR.astype(dtype), -1, 0))
    assert (scan.affine, scan.spacing, scan.frames, scan.part) == (None, (1.0, 1.0, 1.0), False, "")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_images_equal_pillow(tmp_path: Path, compression: str) -> None:
    for pixels in (GREY, COLOUR):
        Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
        expected = np.asarray(Image.open(tmp_path / "a.tif")).reshape(21, 33, -1)
        # Two decoders of JPEG may differ by one; all else is exact.
        difference = scans(tmp_path / "a.tif")[0].voxels[:, 0].astype(int) - np.moveaxis(expected, -1, 0)
        assert abs(difference).max() <= (1 if compression == "jpeg" else 0)


def test_bits_palettes_and_white_as_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    bits = GREY > 100
    for compression in ("raw", "group4"):
        Image.fromarray(bits).save(path, compression=compression)
        assert np.array_equal(scans(path)[0].voxels[0, 0], bits)
    palette = Image.fromarray(COLOUR).quantize(32)
    palette.save(path)
    assert np.array_equal(scans(path)[0].voxels[:, 0], np.moveaxis(np.asarray(palette.convert("RGB")), -1, 0))
    tifffile.imwrite(path, 255 - GREY, photometric="miniswhite")
    assert np.array_equal(scans(path)[0].voxels[0, 0], GREY)
    tifffile.imwrite(path, ~bits, photometric="miniswhite")
    assert np.array_equal(scans(path)[0].voxels[0, 0], bits)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(tmp_path: Path, orientation: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, "H", 1, orientation, True)])
    # Not pillow's own reading of the file: its raw decoder shears what is to be turned (13.0).
    image = Image.fromarray(GREY)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(scans(tmp_path / "a.tif")[0].voxels[0, 0], expected)


def test_only_said_slices_are_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, metadata=None)
    (scan,) = scans(path)
    assert scan.frames
    assert np.array_equal(scan.voxels[0], STACK)
    tifffile.imwrite(path, np.stack([COLOUR] * 4), photometric="rgb", compression="zlib")
    (scan,) = scans(path)
    assert scan.frames
    assert np.array_equal(scan.voxels, np.moveaxis(np.stack([COLOUR] * 4), -1, 0))
    facts = {"axes": "ZYX", "spacing": 2500.0, "unit": "um"}
    tifffile.imwrite(path, STACK, imagej=True, metadata=facts, resolution=(1 / 500, 1 / 250))
    (scan,) = scans(path)
    assert not scan.frames
    np.testing.assert_allclose(scan.spacing, (2.5, 0.25, 0.5))
    assert np.array_equal(scan.voxels[0], STACK)
    assert scan.affine is None


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_series_of_volumes_with_ome_spacing(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.ome.tif"
    array = RNG.integers(0, 60000, (3, 4, 2, 21, 33)).astype(np.uint16)
    facts = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 250.0, "PhysicalSizeZ": 3e6}
    facts |= {"PhysicalSizeYUnit": "µm", "PhysicalSizeZUnit": "nm"}
    tifffile.imwrite(path, array, compression=compression, metadata={"axes": "TZCYX", **facts})
    found = scans(path)
    assert [scan.part for scan in found] == ["0", "1", "2"]
    for scan, volume in zip(found, array, strict=True):
        assert np.array_equal(scan.voxels, volume.swapaxes(0, 1))
        np.testing.assert_allclose(scan.spacing, (3.0, 0.25, 0.5))


def test_pages_of_several_sizes_are_several_scans(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY, metadata=None)
        writer.write(GREY[::2, ::2], metadata=None, subfiletype=1)  # a thumbnail
        writer.write(COLOUR[:9], photometric="rgb", metadata=None)
    first, second = scans(tmp_path / "a.tif")
    assert np.array_equal(first.voxels[0, 0], GREY)
    assert np.array_equal(second.voxels[:, 0], np.moveaxis(COLOUR[:9], -1, 0))
    assert (first.part, second.part) == ("0", "1")


def test_no_other_file_is_opened(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "b.ome.tif", STACK[0])
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[0])
    text = tifffile.TiffFile(tmp_path / "a.ome.tif").ome_metadata
    assert text is not None
    plane = '<UUID FileName="b.ome.tif">urn:uuid:00000000-0000-0000-0000-000000000000</UUID></TiffData>'
    start = text.index("<TiffData")
    pointing = text[:start] + '<TiffData IFD="0" PlaneCount="1">' + plane + text[text.index("</Pixels>") :]
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[2], description=pointing.encode(), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert not np.array_equal(tiff.series[0].asarray(), STACK[2])  # tifffile left to itself follows the name
    (scan,) = scans(tmp_path / "a.ome.tif")
    assert np.array_equal(scan.voxels[0, 0], STACK[2])


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_damage_is_refused(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, compression=compression, metadata=None)
    whole = path.read_bytes()
    damaged = [whole[: len(whole) * 2 // 3], whole[:30], b"", b"II*\0", b"no image"]
    if compression == "zlib":
        damaged += [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in (len(whole) // 2, len(whole) // 3)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ReadError) as caught:
            scans(path)
        assert str(tmp_path) not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from([None, "zlib", "lzw"]))
def test_no_damage_is_worse_than_a_refusal(tmp_path: Path, data, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[:3, :9, :10], imagej=compression is None, compression=compression)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(400, len(content) - 1)))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.tif").write_bytes(content)
    with contextlib.suppress(ReadError, MemoryError):
        assert all(scan.voxels.size for scan in scans(tmp_path / "a.tif"))


def test_what_cannot_be_a_scan_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"

    def refused(array: np.ndarray, reason: str, **how: object) -> None:
        tifffile.imwrite(path, array, **how)
        with pytest.raises(ReadError, match=reason):
            scans(path)

    refused(np.full((4, 5), np.nan, np.float32), "NaN")
    refused(np.ones((4, 5), np.complex64), "complex")
    refused(np.ones((4, 5, 4), np.uint8), "SEPARATED", photometric="separated")
    refused(np.dstack([COLOUR, GREY]), "transparent", photometric="rgb", extrasamples=["unassalpha"])
    refused(np.ones((2, 6, 9, 8), np.uint8), "6 channels", imagej=True, metadata={"axes": "ZCYX"})
    opaque = np.dstack([COLOUR, np.full_like(GREY, 255)])
    tifffile.imwrite(path, opaque, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(scans(path)[0].voxels[:, 0], np.moveaxis(COLOUR, -1, 0))
    monkeypatch.setattr(guard, "RATIO_FROM_BYTES", 2**16)
    refused(np.zeros((2000, 2000), np.uint8), "decompression bomb", compression="zstd")
    monkeypatch.setattr(guard, "MAX_BYTES", GREY.nbytes - 1)
    refused(GREY, "declares .* of voxels")
