"""Fixtures that every test may use."""

import gc
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import warm

pytest_plugins = ["durations", "web_server"]

# Two test processes share two cores; more threads only spin. Before torch is imported, and for every child process.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # a million objects of libraries and test modules: no collection needs to look through them again


SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans beside the project; the test skips where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real scans (../shared/data) are not beside this checkout")
    return folder


@pytest.fixture(scope="session", autouse=True)
def site_key_file(fixed_key: Callable[[str], Path]) -> Iterator[Path]:
    """A site key of the tests' own, so that none of the user's is touched, also by what is set up for a whole file.

    It is the same each time: a random key draws other test patients, and now and then none among a few.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCANFOUNDRY_KEY_FILE", str(fixed_key("tests")))
        yield fixed_key("tests")


@pytest.fixture(scope="session", autouse=True)
def warm_workers() -> Iterator[None]:
    """The worker processes of builds and loaders start at once; those of child processes are new ones of python."""
    from scanfoundry.datasets import processes

    parts = SimpleNamespace(Popen=warm.Popen, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "subprocess", parts)
        yield


@pytest.fixture(scope="session")
def write_key() -> Callable[[Path, str], Path]:
    """`write_key(path, text)`: a site key that is the same each time for the same text."""

    def write(path: Path, text: str) -> Path:
        path.touch(0o600)
        path.write_text(hashlib.sha256(text.encode()).hexdigest())
        return path

    return write


@pytest.fixture(scope="session")
def fixed_key(
    tmp_path_factory: pytest.TempPathFactory, write_key: Callable[[Path, str], Path]
) -> Callable[[str], Path]:
    """`fixed_key(text)`: a site key that is the same each time, where a test depends on the order or the split."""
    folder = tmp_path_factory.mktemp("keys")
    return lambda text: write_key(folder / f"{text}.key", text)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of twelve small smooth volumes and of twelve images, by source name."""
    import nibabel
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    from scanfoundry.datasets.shards.build import BuildOptions, build

    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    for name in ("mr", "us"):
        (root / name).mkdir()
    for i in range(12):
        volume = 100 * ndimage.gaussian_filter(rng.normal(size=(18, 20, 11)), 2)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), root / "mr" / f"{i}.nii.gz")
        image = ndimage.gaussian_filter(rng.normal(size=(21, 25)), 2)
        grey = 255 * (image - image.min()) / np.ptp(image)
        Image.fromarray(grey.astype(np.uint8)).save(root / "us" / f"{i}.png")
    key = root / "site.key"
    for name in ("mr", "us"):
        build([root / name], root / "shards" / name, BuildOptions(modality=name, workers=1, key_file=key), None)
    return {name: root / "shards" / name for name in ("mr", "us")}
