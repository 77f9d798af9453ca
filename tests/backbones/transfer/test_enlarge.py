"""What growing a kernel keeps."""

import pytest
import torch

from scanfoundry.backbones.mednext import MedNeXt, MedNeXtConfig, MedNeXtEncoder
from scanfoundry.backbones.transfer.enlarge import enlarge_state
from scanfoundry.configs.errors import UserError


def networks():
    small, large = (
        MedNeXt(MedNeXtEncoder(MedNeXtConfig(size="S", kernel=kernel)), 2, deep_supervision=True).double()
        for kernel in (3, 5)
    )
    return small, large


@pytest.mark.parametrize("shape", [(16, 16, 32), (1, 33, 48)])
def test_centre_keeps_the_function(shape):
    small, large = networks()
    grown, done = enlarge_state(small.state_dict(), large.state_dict(), "centre")
    large.load_state_dict(grown)
    x = torch.randn(1, 1, *shape, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(large(x), small(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert done["enc_block_0.0.conv1.weight"] == "enlarged by centre: (32, 1, 3, 3, 3) -> (32, 1, 5, 5, 5)"
    assert all(("conv1.weight" in key) == (what != "kept") for key, what in done.items())


def test_upkern_interpolates_trilinearly_and_does_not_keep_the_function():
    small, large = networks()
    state = small.state_dict()
    grown, done = enlarge_state(state, large.state_dict(), "upkern")
    for key, value in grown.items():
        expected = interpolated(state[key], 5) if key.endswith("conv1.weight") else state[key]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    assert done["up_0.conv1.weight"] == "enlarged by upkern: (64, 1, 3, 3, 3) -> (64, 1, 5, 5, 5)"
    large.load_state_dict(grown)
    x = torch.randn(1, 1, 16, 16, 32, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(large(x)[0], small(x)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ((4, 2, 3, 3, 3), (4, 1, 5, 5, 5), r"only the kernel \(last 3 axes\) may differ"),
        ((4,), (5,), "only the kernel"),
        ((4, 1, 5, 5, 5), (4, 1, 3, 3, 3), "cannot grow evenly"),
        ((4, 1, 3, 3, 3), (4, 1, 4, 4, 4), "cannot grow evenly"),
    ],
)
@pytest.mark.parametrize("how", ["upkern", "centre"])
def test_shapes_that_do_not_match_are_refused(how, old, new, message):
    with pytest.raises(UserError, match=message):
        enlarge_state({"w": torch.zeros(old)}, {"w": torch.zeros(new)}, how)


def test_keys_that_do_not_match_are_refused():
    one = {"w": torch.zeros(1)}
    with pytest.raises(UserError, match="b is only in the larger network"):
        enlarge_state(one, one | {"b": torch.zeros(1)}, "centre")
    with pytest.raises(UserError, match="b is only in the weights"):
        enlarge_state(one | {"b": torch.zeros(1)}, one, "upkern")


def interpolated(kernel, size):
    """Linear interpolation at half-voxel centres along each of the last three axes, by loops."""
    for axis in (-3, -2, -1):
        old = kernel.shape[axis]
        slices = []
        for i in range(size):
            place = min(max((i + 0.5) * old / size - 0.5, 0), old - 1)
            low = min(int(place), old - 2)
            share = place - low
            slices.append((1 - share) * kernel.select(axis, low) + share * kernel.select(axis, low + 1))
        kernel = torch.stack(slices, dim=axis)
    return kernel
