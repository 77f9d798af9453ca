"""Fixtures that every test may use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans beside the project; the test skips where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real scans (../shared/data) are not beside this checkout")
    return folder


@pytest.fixture(autouse=True)
def site_key_file(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site key of the tests' own, so that none of the user's is touched."""
    path = tmp_path_factory.getbasetemp() / "site.key"
    monkeypatch.setenv("SCANFORGE_KEY_FILE", str(path))
    return path
