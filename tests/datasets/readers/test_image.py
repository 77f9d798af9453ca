"""PNG, BMP and GIF: every depth, every kind of palette, every orientation, and damage."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from scanfoundry.datasets.labels.attach import as_mask
from scanfoundry.datasets.readers import ReadError, read

RNG = np.random.default_rng(0)


def deep(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Writes noise as a PNG of 16 bits."""
    pixels = RNG.integers(0, 65536, shape).astype(np.uint16)
    if shape[-1] in (2, 4):
        pixels[..., -1] = 65535
    path.write_bytes(imagecodecs.png_encode(pixels))
    return pixels


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bits_of_several_channels_are_kept(tmp_path: Path, channels: int) -> None:
    pixels = deep(tmp_path / "a.png", (9, 7, channels))
    (scan,) = read(tmp_path / "a.png")
    assert scan.voxels.dtype == np.uint16
    kept = pixels[..., :1] if channels == 2 else pixels[..., :3]
    assert np.array_equal(scan.voxels[:, 0], np.moveaxis(kept, -1, 0))


def test_16_bits_of_one_channel_are_kept(tmp_path: Path) -> None:
    pixels = deep(tmp_path / "a.png", (9, 7))
    assert np.array_equal(read(tmp_path / "a.png")[0].voxels[0, 0], pixels)


def test_what_is_transparent_in_16_bits_is_refused(tmp_path: Path) -> None:
    for channels in (2, 4):
        pixels = RNG.integers(0, 65536, (9, 7, channels)).astype(np.uint16)
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
        with pytest.raises(ReadError, match="transparent"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    pixels = deep(tmp_path / "deep.png", (9, 7, 3))
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(tmp_path / "flat.png", exif=_exif(orientation))
    content = (tmp_path / "deep.png").read_bytes()
    chunk = _chunk((tmp_path / "flat.png").read_bytes(), b"eXIf")
    (tmp_path / "deep.png").write_bytes(content[:33] + chunk + content[33:])
    (flat,), (found,) = read(tmp_path / "flat.png"), read(tmp_path / "deep.png")
    assert np.array_equal(found.voxels >> 8, flat.voxels)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _chunk(content: bytes, name: bytes) -> bytes:
    start = content.index(name) - 4
    return content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]


def test_a_damaged_file_of_16_bits_says_so(tmp_path: Path) -> None:
    deep(tmp_path / "a.png", (40, 40, 3))
    content = (tmp_path / "a.png").read_bytes()
    for cut in (len(content) // 2, 60, 30):
        (tmp_path / "a.png").write_bytes(content[:cut])
        with pytest.raises(ReadError, match=r"damaged|pillow"):
            read(tmp_path / "a.png")


def palette(index: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(index, "P")
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


INDEX = RNG.integers(0, 3, (9, 7)).astype(np.uint8)
COLOURS = [255, 255, 255, 0, 0, 0, 250, 0, 0]


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.tif"])
def test_a_palette_is_colours_to_look_at_and_an_index_to_learn(tmp_path: Path, name: str) -> None:
    if name == "a.tif":
        table = np.zeros((3, 256), np.uint16)
        table[:, :3] = np.array(COLOURS).reshape(3, 3).T * 257
        tifffile.imwrite(tmp_path / name, INDEX, photometric="palette", colormap=table)
    else:
        palette(INDEX, COLOURS).save(tmp_path / name)
    (scan,) = read(tmp_path / name)
    assert np.array_equal(scan.voxels[:, 0], np.moveaxis(np.array(COLOURS).reshape(3, 3)[INDEX], -1, 0))
    assert np.array_equal(as_mask(scan)[0], INDEX)
    assert np.array_equal(as_mask(read(tmp_path / name, mask=True)[0])[0], INDEX)


def test_a_palette_with_a_transparent_colour_is_a_mask_but_no_image(tmp_path: Path) -> None:
    palette(INDEX, COLOURS).save(tmp_path / "a.png", transparency=0)
    with pytest.raises(ReadError, match="transparent"):
        read(tmp_path / "a.png")
    assert np.array_equal(as_mask(read(tmp_path / "a.png", mask=True)[0])[0], INDEX)


def test_a_palette_is_turned_with_its_image(tmp_path: Path) -> None:
    palette(INDEX, COLOURS).save(tmp_path / "a.png", exif=_exif(6))
    (scan,) = read(tmp_path / "a.png")
    assert scan.voxels.shape == (3, 1, 7, 9)
    assert np.array_equal(scan.indices[0], np.rot90(INDEX, -1))


def test_grey_of_8_bits_stays_as_it_was(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (9, 7)).astype(np.uint8)
    for name in ("a.bmp", "a.gif", "a.png"):
        Image.fromarray(grey).save(tmp_path / name)
        (scan,) = read(tmp_path / name)
        assert np.array_equal(scan.voxels[0, 0], grey)
        assert not scan.lossy
    Image.fromarray(grey).save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg")[0].lossy


def test_an_animated_gif_is_refused(tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((9, 7), value, np.uint8)) for value in (3, 90))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    with pytest.raises(ReadError, match="animation"):
        read(tmp_path / "a.gif")
