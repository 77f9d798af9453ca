import numpy as np
import pytest

from scanforge.finetune.adapter import fitted_shape, upright
from scanforge.finetune.plan import Fingerprint, Plan


def plan(patch, spacing=(1.0, 1.0, 1.0)):
    found = Fingerprint(scans=1, shape=(1, 1, 1), spacing=spacing, is_2d=patch[0] == 1)
    return Plan(spacing=spacing, patch=patch, batch=1, fingerprint=found)


def test_slices_are_shown_as_radiologists_look_at_them():
    grid = np.array([[0, 1], [2, 3]])  # (H, W)
    assert upright(grid, "", 0).tolist() == [[0, 1], [2, 3]]
    assert upright(grid, "SPL", 0).tolist() == [[0, 1], [2, 3]]  # posterior down, left on the right: as it is
    assert upright(grid, "SAR", 0).tolist() == [[3, 2], [1, 0]]
    assert upright(grid, "SAR", 1).tolist() == [[3, 2], [1, 0]]  # coronal (D, W): superior up
    assert upright(grid, "IPL", 2).tolist() == [[0, 1], [2, 3]]  # sagittal (D, H): the front on the left


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((1, 200, 100), (1, 1, 1), (1, 64, 32)),
        ((1, 20, 40), (1, 1, 1), (1, 32, 64)),
        ((1, 40, 40), (1, 2, 1), (1, 64, 32)),
    ],
)
def test_a_scan_fits_the_patch_at_its_own_aspect(shape, spacing, expected):
    assert fitted_shape(shape, spacing, plan((1, 64, 64))) == expected
