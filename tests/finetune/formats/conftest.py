"""Small files of every kind."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save():
    """Write an array (x, y, z[, volume]) as NIfTI, or (H, W) as PNG, below any folder."""

    def write(path, array, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(np.asarray(array, np.uint8)).save(path)
        else:
            nib.save(nib.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def cube():
    """A volume of one value, (x, y, z) = (8, 6, 4), and one labelled corner."""

    def make(value, labelled=False):
        array = np.full((8, 6, 4), value, np.uint8)
        if labelled:
            array[:3, :3, :2] = 1
        return array

    return make
