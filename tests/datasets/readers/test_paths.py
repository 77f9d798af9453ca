from pathlib import Path

from scanfoundry.datasets.readers.paths import RealPaths


def test_as_resolve_with_links_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "y.png").symlink_to("b/x.png")
    (tmp_path / "a" / "dead.png").symlink_to("gone.png")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    real = RealPaths()
    for _ in range(2):
        for root, name in (
            ("a", "b/x.png"),
            ("link", "b/x.png"),
            ("a", "y.png"),
            ("link", "y.png"),
            ("link/../a", "b/x.png"),
        ):
            assert real.of(tmp_path / root, name) == (tmp_path / "a" / "b" / "x.png").resolve()
    assert real.of(tmp_path / "a", "dead.png") == (tmp_path / "a" / "gone.png").resolve()
    assert real.of(tmp_path / "link", "loop.png").name == "loop.png"
    assert real.of(tmp_path / "link", "none.png") == (tmp_path / "a" / "none.png").resolve()
