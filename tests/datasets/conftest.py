"""A small cohort of real files, and the data sets built from it."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scanfoundry.datasets.shards.build import BuildOptions, build


def _write_nifti(path: Path, array: np.ndarray, zooms: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*zooms, 1.0])), path)


def _write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 volumes of 12 patients in `mr`, 40 images in `xr`; sizes differ, intensities tell the files apart."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    for number in range(24):
        shape = rng.integers(9, 30, 3)
        array = (rng.normal(size=shape) * 20 + 100 * number + 300).astype(np.int16)
        _write_nifti(folder / "mr" / f"sub-Meier{number // 2:02d}" / f"ses-{number % 2}_T1w.nii.gz", array)
    for number in range(40):
        array = rng.integers(0, 200, rng.integers(20, 60, 2)).astype(np.uint8) + np.uint8(number)
        _write_png(folder / "xr" / f"Schmidt_{number:03d}.png", array)
    return folder


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("key") / "site.key"


@pytest.fixture(scope="session")
def options(key_file: Path) -> BuildOptions:
    """About five shards per data set of the cohort."""
    return BuildOptions(key_file=key_file, shard_mb=0.05, workers=1)


@pytest.fixture(scope="session")
def data_sets(cohort: Path, options: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mr` and `xr` built; tests that damage them work on a copy."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("mr", "xr"):
        build([cohort / name], folder / name, options.model_copy(update={"modality": name}))
    return folder


@pytest.fixture(scope="session")
def write_nifti() -> Callable[[Path, np.ndarray], None]:
    return _write_nifti


@pytest.fixture(scope="session")
def write_png() -> Callable[[Path, np.ndarray], None]:
    return _write_png


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files of a folder, to compare two."""

    def read(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read
