"""A JPEG without metadata: nothing that names a person is left, and it decodes to the same pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scanfoundry.datasets.readers import read
from scanfoundry.datasets.shards.jpeg import decode_jpeg, keep_jpeg, single_channel, strip_jpeg

NAME = b"Meier^Anna"
CODINGS = {
    "grey": ("L", {}),
    "colour": ("RGB", {}),
    "colour in full": ("RGB", {"subsampling": 0}),
    "half": ("RGB", {"subsampling": 1}),
    "progressive": ("RGB", {"progressive": True}),
    "progressive grey": ("L", {"progressive": True}),
    "restart": ("RGB", {"restart_marker_blocks": 1}),
    "restart rows": ("L", {"restart_marker_rows": 1}),
    "optimised": ("RGB", {"optimize": True}),
    "not YCbCr": ("RGB", {"keep_rgb": True}),
}


def picture(seed: int, mode: str, size: tuple[int, int] = (37, 41)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = size if mode == "L" else (*size, 3)
    blocks = rng.integers(0, 200, (5, 6, *shape[2:]))
    smooth = blocks.repeat(8, 0).repeat(7, 1)[: size[0], : size[1]]
    return (smooth + rng.integers(0, 50, shape)).astype(np.uint8)


def jpeg(coding: str, seed: int = 0) -> bytes:
    mode, options = CODINGS[coding]
    stream = io.BytesIO()
    Image.fromarray(picture(seed, mode)).save(stream, "JPEG", quality=80, **options)
    return stream.getvalue()


def decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def boundaries(content: bytes) -> list[int]:
    """Where a segment may stand: before each marker that has one, up to the first scan."""
    found, place = [], 2
    while content[place + 1] != 0xDA:
        found.append(place)
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return [*found, place]


metadata = st.tuples(
    st.sampled_from([*range(0xE1, 0xEE), 0xEF, 0xFE]),
    st.sampled_from([b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0\1\1", b"MPF\0", b""]),
    st.binary(max_size=300),
    st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CODINGS)), st.lists(metadata, max_size=5), st.binary(max_size=50), st.data())
def test_segments_go_and_pixels_stay(
    coding: str, inserted: list[tuple[int, bytes, bytes, int]], tail: bytes, data: st.DataObject
) -> None:
    plain = jpeg(coding)
    bare = strip_jpeg(plain)
    assert bare is not None
    assert np.array_equal(decoded(bare), decoded(plain))
    content = plain
    drawn = st.sampled_from(boundaries(plain)[1:])  # JFIF stays the first
    places = sorted((data.draw(drawn) for _ in inserted), reverse=True)
    for place, (marker, head, body, fill) in zip(places, inserted, strict=True):
        added = b"\xff" * fill + segment(marker, head + NAME + body)
        content = content[:place] + added + content[place:]
    assert strip_jpeg(content + tail + NAME) == bare
    assert NAME not in bare
    assert strip_jpeg(bare) == bare
    assert len(bare) <= len(plain)


@pytest.mark.parametrize("coding", sorted(CODINGS))
def test_what_is_kept_decodes_to_what_the_reader_gives(coding: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg(coding))
    (scan,) = read(path)
    kept = keep_jpeg(path, scan.voxels)
    assert kept is not None
    pixels = decode_jpeg(kept.payload, scan.voxels.shape)
    assert np.array_equal(np.moveaxis(pixels, -1, 0)[:, None], scan.voxels)
    other = scan.voxels.copy()
    other[0, 0, 3, 3] ^= 1
    assert keep_jpeg(path, other) is None


@pytest.mark.parametrize("transform", [0, 1])
def test_the_transform_of_adobe_is_kept_and_nothing_else_of_it(transform: int) -> None:
    """Without the marker of JFIF, this byte alone says whether the channels are RGB or YCbCr."""
    plain = jpeg("colour in full")
    start = boundaries(plain)[1]
    said = segment(0xEE, b"Adobe\x00\x65\x80\x12\x34\x56" + bytes([transform]) + NAME)
    content = plain[:2] + said + plain[start:]
    bare = strip_jpeg(content)
    assert bare is not None
    assert NAME not in bare
    assert b"\x80\x12\x34\x56" not in bare[:30]
    assert np.array_equal(decoded(bare), decoded(content))
    assert np.array_equal(decoded(bare), decoded(plain)) == (transform == 1)


def test_density_and_thumbnail_of_jfif_go() -> None:
    plain = jpeg("grey")
    start = boundaries(plain)[1]
    thumbnail = b"JFIF\0\1\2\1\x01\x2c\x01\x2c\2\2" + b"ABCDEFGHIJKL"
    content = plain[:2] + segment(0xE0, thumbnail) + segment(0xE0, b"JFXX\0\x13" + NAME) + plain[start:]
    bare = strip_jpeg(content)
    assert bare == strip_jpeg(plain)
    assert b"ABCDEF" not in bare


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CODINGS)), st.data())
def test_damaged_files_raise_nothing(coding: str, data: st.DataObject) -> None:
    content = bytearray(jpeg(coding))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for each in (bytes(content), cut):
        bare = strip_jpeg(each)
        assert bare is None or strip_jpeg(bare) == bare


@pytest.mark.parametrize("wrong", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG", b"\xff\xd8\xff\xe1\x00"])
def test_what_is_no_jpeg(wrong: bytes) -> None:
    assert strip_jpeg(wrong) is None


def test_files_of_another_structure_are_not_kept() -> None:
    plain = jpeg("grey")
    frame = plain.index(b"\xff\xc0")
    end = frame + 2 + int.from_bytes(plain[frame + 2 : frame + 4], "big")
    assert strip_jpeg(plain[:end] + plain[frame:end] + plain[end:]) is None  # two frames
    assert strip_jpeg(plain[:frame] + b"junk" + plain[frame:]) is None
    assert strip_jpeg(plain[:-2]) is None  # without its end
    assert strip_jpeg(plain[:frame] + segment(0xF7, NAME) + plain[frame:]) is None  # reserved for extensions


def test_a_damaged_file_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg("grey"))
    (scan,) = read(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    assert keep_jpeg(path, scan.voxels) is None
    path.write_bytes(content)
    assert keep_jpeg(path, scan.voxels.astype(np.uint16)) is None


@pytest.mark.parametrize("shape", [(3, 1, 41, 37), (1, 1, 37, 40), (1, 2, 37, 41), (2, 1, 37, 41)])
def test_another_size_than_that_of_the_index_is_no_image(shape: tuple[int, ...]) -> None:
    for coding in ("grey", "colour"):
        with pytest.raises(ValueError, match=r"shape|cannot be of"):
            decode_jpeg(jpeg(coding), shape)


def test_colour_of_equal_channels_is_one_channel() -> None:
    grey = np.arange(60, dtype=np.uint8).reshape(1, 3, 4, 5)
    same = np.repeat(grey, 3, 0)
    assert np.array_equal(single_channel(same), grey)
    for place in range(3):
        other = same.copy()
        other[place, 2, 3, 4] ^= 1
        assert single_channel(other) is other
    for channels in (1, 2, 4):
        many = np.repeat(grey, channels, 0)
        assert single_channel(many) is many


def test_the_luminance_alone_is_decoded_where_channels_are_equal(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(picture(1, "L")).convert("RGB").save(path, quality=90)
    (scan,) = read(path)
    voxels = single_channel(scan.voxels)
    assert (scan.voxels.shape[0], voxels.shape[0]) == (3, 1)
    kept = keep_jpeg(path, voxels)
    assert kept is not None
    assert np.array_equal(decode_jpeg(kept.payload, voxels.shape)[..., 0], voxels[0, 0])
