"""Folders of numbered images as videos: what is one, and that it comes back frame by frame."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scanfoundry.datasets.readers import frames
from scanfoundry.datasets.readers.frames import find_frame_folders, read_frames
from scanfoundry.datasets.readers.scan import ReadError

RNG = np.random.default_rng(0)


def save(root: Path, names: list[str], shape: tuple[int, ...] = (12, 16)) -> np.ndarray:
    video = RNG.integers(0, 255, (len(names), *shape)).astype(np.uint8)
    for name, frame in zip(names, video, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(root / name)
    return video


def listed(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))


@pytest.mark.parametrize("pattern", ["a/frame_{:04d}.png", "a/{}.png", "a/us 12-{}.PNG"])
def test_frames_come_back_in_their_order(tmp_path: Path, pattern: str) -> None:
    for shape in ((12, 16), (12, 16, 3)):
        video = save(tmp_path, [pattern.format(number) for number in range(95, 107)], shape)
        ((source,), rest) = find_frame_folders(tmp_path, listed(tmp_path))
        assert rest == []
        (scan,) = read_frames(source)
        expected = video[..., None] if video.ndim == 3 else video
        assert np.array_equal(scan.voxels, np.moveaxis(expected, -1, 0))
        assert scan.frames
        assert scan.affine is None
        assert source.size == sum(path.stat().st_size for path in source.paths)


def test_what_is_no_video_stays_single_images(tmp_path: Path) -> None:
    save(tmp_path, [f"few/{n}.png" for n in range(7)])
    save(tmp_path, [f"gaps/{n}.png" for n in range(0, 100, 3)])
    save(tmp_path, [f"named/{name}.png" for name in "abcdefghij"])
    save(tmp_path, [f"twice/{n}.png" for n in range(8)] + ["twice/01.png"])
    save(tmp_path, [f"sizes/{n}.png" for n in range(8)])
    save(tmp_path, ["sizes/8.png"], (12, 17))
    files = listed(tmp_path)
    videos, rest = find_frame_folders(tmp_path, files)
    assert videos == []
    assert rest == files


def test_a_dropped_frame_and_two_videos_in_a_folder(tmp_path: Path) -> None:
    save(tmp_path, [f"a/left_{n:03d}.png" for n in range(20) if n != 7])
    save(tmp_path, [f"a/right_{n:03d}.png" for n in range(10)])
    save(tmp_path, ["a/overview.png"])
    videos, rest = find_frame_folders(tmp_path, [*listed(tmp_path), "a/x.nii.gz"])
    assert [len(video.files) for video in videos] == [19, 10]
    assert [video.relative for video in videos] == ["a/left_000.png", "a/right_000.png"]
    assert rest == ["a/overview.png", "a/x.nii.gz"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 990), st.integers(8, 30), st.booleans(), st.randoms())
def test_any_run_is_found_whole(tmp_path_factory, start: int, count: int, padded: bool, random) -> None:
    root = tmp_path_factory.mktemp("run")
    names = [f"f{number:05d}.png" if padded else f"f{number}.png" for number in range(start, start + count)]
    save(root, names, (4, 5))
    shuffled = list(names)
    random.shuffle(shuffled)
    ((source,), rest) = find_frame_folders(root, shuffled)
    assert list(source.files) == names
    assert rest == []


def test_long_videos_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = save(tmp_path, [f"{n}.png" for n in range(23)])
    monkeypatch.setattr(frames, "PART_BYTES", 10 * video[0].nbytes)
    ((source,), _) = find_frame_folders(tmp_path, listed(tmp_path))
    parts = list(read_frames(source))
    assert [(part.part, part.voxels.shape[1]) for part in parts] == [("0", 10), ("1", 10), ("2", 3)]
    assert np.array_equal(np.concatenate([part.voxels[0] for part in parts]), video)


def test_a_damaged_or_foreign_frame_is_named(tmp_path: Path) -> None:
    save(tmp_path, [f"{n}.png" for n in range(10)])
    ((source,), _) = find_frame_folders(tmp_path, listed(tmp_path))
    Image.fromarray(RNG.integers(0, 255, (12, 16, 3)).astype(np.uint8)).save(tmp_path / "4.png")
    with pytest.raises(ReadError, match=r"frame 4 is \(3, 12, 16\)"):
        list(read_frames(source))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    with pytest.raises(ReadError, match="frame 3: ") as caught:
        list(read_frames(source))
    assert str(tmp_path) not in str(caught.value)
