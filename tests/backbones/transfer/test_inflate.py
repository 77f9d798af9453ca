"""What each way between 2D and 3D kernels keeps."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.backbones.stunet import STUNet, STUNetConfig, STUNetEncoder
from scanfoundry.backbones.transfer.inflate import flatten_kernels, flatten_state, inflate_kernels, inflate_state
from scanfoundry.backbones.transfer.rotation import PLANES, rotate_kernels, three_shears
from scanfoundry.configs.errors import UserError

seeds = st.integers(0, 2**31)
odd = st.sampled_from([1, 3, 5, 7])
three_angles = st.lists(st.floats(-7, 7), min_size=3, max_size=3)
given_few = settings(max_examples=40, deadline=None, derandomize=True)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one, other, tolerance=1e-12):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


class TestInflation:
    @given(seed=seeds, depth=odd, height=odd, width=odd, stride=st.integers(1, 2), groups=st.sampled_from([1, 2]))
    @given_few
    def test_centre_is_the_2d_convolution_of_every_slice(self, seed, depth, height, width, stride, groups):
        kernel, x = randn(seed, 4, 4 // groups, height, width), randn(seed + 1, 2, 4, 4, 9, 8)
        padding = (height // 2, width // 2)
        solid = inflate_kernels(kernel, depth, "centre")
        volume = F.conv3d(x, solid, None, (1, stride, stride), (depth // 2, *padding), groups=groups)
        for d in range(x.shape[2]):
            close(volume[:, :, d], F.conv2d(x[:, :, d], kernel, None, stride, padding, groups=groups))
        assert torch.equal(flatten_kernels(solid, "centre"), kernel)
        assert torch.equal(flatten_kernels(solid, "sum"), kernel)

    @given(seed=seeds, depth=st.integers(1, 6), stride=st.integers(1, 3))
    @given_few
    def test_average_is_the_2d_convolution_on_a_volume_constant_along_depth(self, seed, depth, stride):
        kernel, image = randn(seed, 3, 2, 3, 5), randn(seed + 1, 1, 2, 7, 8)
        x = image.unsqueeze(2).expand(-1, -1, depth + 4, -1, -1)
        solid = inflate_kernels(kernel, depth, "average")
        inside = F.conv3d(x, solid, None, (stride, 1, 1), (0, 1, 2))  # no padding of depth: away from its ends
        expected = F.conv2d(image, kernel, None, 1, (1, 2))
        close(inside, expected.unsqueeze(2).expand_as(inside))
        close(flatten_kernels(solid, "sum"), kernel)

    def test_average_is_not_exact_at_the_ends_nor_for_a_transposed_stride(self):
        kernel, x = randn(0, 2, 2, 3, 3), torch.ones(1, 2, 6, 5, 5, dtype=torch.float64)
        solid = inflate_kernels(kernel, 3, "average")
        padded = F.conv3d(x, solid, padding=1)
        assert not torch.allclose(padded[:, :, 0], padded[:, :, 2])
        close(padded[:, :, 1], padded[:, :, 2])
        inside = F.conv_transpose3d(x, solid, stride=(1, 2, 2))[:, :, 2:-2]
        close(inside, F.conv_transpose2d(x[:, :, 0], kernel, stride=2).unsqueeze(2).expand_as(inside))
        strided = F.conv_transpose3d(x, solid, stride=2)[:, :, 2:-2]
        assert not torch.allclose(strided[:, :, 0], strided[:, :, 1])

    @given(seed=seeds, depth=odd, padded=st.integers(1, 3))
    @given_few
    def test_flattening_is_exact_where_it_says(self, seed, depth, padded):
        kernel, image = randn(seed, 2, 3, depth, 3, 3), randn(seed + 1, 1, 3, 6, 7)
        flat = F.conv3d(image.unsqueeze(2), kernel, padding=(depth // 2, 1, 1))
        close(flat[:, :, 0], F.conv2d(image, flatten_kernels(kernel, "centre"), padding=1))
        x = image.unsqueeze(2).expand(-1, -1, depth + padded, -1, -1)
        inside = F.conv3d(x, kernel, padding=(0, 1, 1))
        expected = F.conv2d(image, flatten_kernels(kernel, "sum"), padding=1)
        close(inside, expected.unsqueeze(2).expand_as(inside))

    def test_what_has_no_middle_slice_or_is_no_cube_is_refused(self):
        with pytest.raises(UserError, match="depth 4 has no middle slice for 'centre'; take an odd depth or 'average'"):
            inflate_kernels(torch.zeros(1, 1, 4, 4), 4)
        with pytest.raises(UserError, match="depth 2 has no middle slice for 'fourier'; take 'sum'"):
            flatten_kernels(torch.zeros(1, 1, 2, 2, 2), "fourier")
        for shape in ((1, 1, 3, 5, 5), (1, 1, 4, 4, 4), (3, 3)):
            with pytest.raises(UserError, match=r"only kernels \(\.\.\., k, k, k\) of odd k can be rotated"):
                rotate_kernels(torch.zeros(shape), torch.zeros(3))


class TestRotation:
    @given(seed=seeds, size=odd, turns=st.lists(st.integers(-5, 5), min_size=3, max_size=3))
    @given_few
    def test_multiples_of_90_degrees_reorder_the_voxels(self, seed, size, turns):
        kernel = randn(seed, 2, 3, size, size, size)
        expected = kernel
        for quarters, plane in zip(turns, PLANES, strict=True):
            expected = torch.rot90(expected, quarters, plane)
        angles = torch.tensor(turns, dtype=torch.float64) * (math.pi / 2)
        close(rotate_kernels(kernel, angles), expected)

    @given(seed=seeds, size=odd, plane=st.sampled_from(PLANES), sign=st.sampled_from([-1, 1]))
    @given_few
    def test_three_shears_alone_give_90_degrees_exactly(self, seed, size, plane, sign):
        kernel = randn(seed, 2, size, size, size)
        angle = torch.tensor(sign * math.pi / 2, dtype=torch.float64)
        close(three_shears(kernel, angle, plane), torch.rot90(kernel, sign, plane))

    @given(seed=seeds, size=odd, angles=three_angles)
    @given_few
    def test_it_is_orthogonal_keeps_the_sum_and_is_undone(self, seed, size, angles):
        kernel, other = randn(seed, 2, size, size, size), randn(seed + 1, 2, size, size, size)
        angles = torch.tensor(angles, dtype=torch.float64)
        turned = rotate_kernels(kernel, angles)
        close(turned.sum(dim=(1, 2, 3)), kernel.sum(dim=(1, 2, 3)), 1e-11)
        close((turned * rotate_kernels(other, angles)).sum(), (kernel * other).sum(), 1e-11)
        close(rotate_kernels(turned, angles, inverse=True), kernel, 1e-11)

    @pytest.mark.parametrize("angles", [(0.4, 0.0, 0.0), (0.0, -2.0, 0.0), (0.0, 0.0, 1.0), (0.5, -0.3, 2.5)])
    def test_a_smooth_kernel_turns_like_the_function_it_samples(self, angles):
        """A Gaussian's middle must move as the rotation matrices say, in direction and order of the planes."""
        size, start = 31, torch.tensor([5.0, -3.0, 4.0], dtype=torch.float64)
        axis = torch.arange(size, dtype=torch.float64) - size // 2
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)

        def blob(middle):
            return torch.exp(-(grid - middle).square().sum(dim=-1) / 8)

        end = start.clone()
        for angle, (first, second) in zip(angles, PLANES, strict=True):
            a, b = end[first].clone(), end[second].clone()
            end[first] = math.cos(angle) * a - math.sin(angle) * b
            end[second] = math.sin(angle) * a + math.cos(angle) * b
        assert (end - start).abs().max() > 1
        turned = rotate_kernels(blob(start), torch.tensor(angles, dtype=torch.float64))
        close(turned, blob(end), 1e-4)

    def test_it_is_differentiable_in_kernels_and_angles(self):
        kernel = randn(0, 2, 3, 3, 3).requires_grad_()
        for start in ((0.0, 0.0, 0.0), (0.3, -2.0, 1.2)):
            angles = torch.tensor(start, dtype=torch.float64, requires_grad=True)
            assert torch.autograd.gradcheck(rotate_kernels, (kernel, angles))
            gradient = torch.autograd.grad((rotate_kernels(kernel, angles) * randn(1, 3, 3, 3)).sum(), angles)[0]
            assert gradient.abs().min() > 1e-3

    def test_angle_zero_is_the_kernel_where_the_authors_code_shifts_it(self):
        """Their phase exp(-2 pi i (1, 1, 1) . R f) at R = I is a roll by one voxel along each axis."""
        kernel, zero = randn(0, 5, 5, 5), torch.zeros(3, dtype=torch.float64)
        f = torch.fft.fftfreq(5, dtype=torch.float64)
        phase = -2 * math.pi * (f[:, None, None] + f[:, None] + f)
        theirs = torch.fft.ifftn(torch.fft.fftn(kernel) * torch.polar(torch.ones_like(phase), phase)).real
        close(theirs, torch.roll(kernel, (1, 1, 1), (0, 1, 2)))
        close(rotate_kernels(kernel, zero), kernel)
        assert not torch.allclose(theirs, kernel)

    def test_half_precision_is_computed_wide_and_comes_back(self):
        kernel = randn(0, 2, 3, 3, 3).bfloat16()
        turned = rotate_kernels(kernel, torch.tensor([0.3, 0.2, 0.1]))
        assert turned.dtype == torch.bfloat16
        close(turned, rotate_kernels(kernel.float(), torch.tensor([0.3, 0.2, 0.1])).bfloat16())


class TestFourier:
    @given(seed=seeds, size=odd, angles=three_angles)
    @given_few
    def test_one_orientation_is_undone_and_zero_angles_are_centre(self, seed, size, angles):
        kernel = randn(seed, 2, 3, size, size)
        orientation = torch.tensor([angles], dtype=torch.float64)
        solid = inflate_kernels(kernel, size, "fourier", orientation)
        close(flatten_kernels(solid, "fourier", orientation), kernel, 1e-11)
        close(solid.norm(), kernel.norm(), 1e-11)
        still = torch.zeros(1, 3, dtype=torch.float64)
        close(inflate_kernels(kernel, size, "fourier", still), inflate_kernels(kernel, size, "centre"))

    @given(seed=seeds, size=odd, angles=st.lists(three_angles, min_size=1, max_size=4))
    @given_few
    def test_the_way_back_is_the_transpose_and_constants_keep_their_response(self, seed, size, angles):
        flat, solid = randn(seed, 2, 3, size, size), randn(seed + 1, 2, 3, size, size, size)
        orientations = torch.tensor(angles, dtype=torch.float64)
        there = inflate_kernels(flat, size, "fourier", orientations)
        back = flatten_kernels(solid, "fourier", orientations)
        close((there * solid).sum(), (flat * back).sum(), 1e-10)
        close(there.sum(dim=(-3, -2, -1)), flat.sum(dim=(-2, -1)), 1e-10)

    def test_by_default_the_three_planes_are_averaged(self):
        kernel = randn(0, 1, 1, 3, 3)
        solid = inflate_kernels(kernel, 3, "fourier")[0, 0]
        expected = torch.zeros(3, 3, 3, dtype=torch.float64)
        expected[1] += kernel[0, 0] / 3  # (H, W)
        expected += torch.rot90(F.pad(kernel[0, 0][None], (0, 0, 0, 0, 1, 1)), 1, (0, 2)) / 3
        expected += torch.rot90(F.pad(kernel[0, 0][None], (0, 0, 0, 0, 1, 1)), 1, (0, 1)) / 3
        close(solid, expected)
        assert solid[:, :, 1].count_nonzero() == solid[:, 1].count_nonzero() == solid[1].count_nonzero() == 9

    def test_gradients_reach_the_orientations(self):
        kernel, angles = randn(0, 2, 2, 3, 3), randn(1, 2, 3).requires_grad_()
        inflate_kernels(kernel, 3, "fourier", angles).square().sum().backward()
        assert (angles.grad.abs() > 1e-6).any(dim=1).all()


SMALL = ((2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1), (1, 1, 1))


class TestState:
    @pytest.fixture(scope="class")
    def network(self):
        torch.manual_seed(0)
        return STUNet(STUNetEncoder(STUNetConfig(size="S", strides=SMALL)), num_classes=2).double()

    def test_a_stunet_goes_to_2d_and_back(self, network):
        """The flattened weights have 2D shapes; inflated again they are the same function on images."""
        solid = network.state_dict()
        flat, done = flatten_state(solid)
        assert flat["conv_blocks_context.0.0.conv1.weight"].shape == (16, 1, 3, 3)
        assert done["conv_blocks_context.0.0.conv1.weight"] == (
            "flattened by centre: (16, 1, 3, 3, 3) -> (16, 1, 3, 3)"
        )
        assert {key for key, what in done.items() if what == "kept"} == {k for k, v in solid.items() if v.dim() == 1}
        again, done = inflate_state(flat, like=solid)
        assert done["upsample_layers.0.conv.weight"] == "inflated by centre: (256, 256, 1, 1) -> (256, 256, 1, 1, 1)"
        assert again.keys() == done.keys() == solid.keys()
        assert all(torch.equal(flatten_state(again)[0][key], flat[key]) for key in flat)
        other = STUNet(STUNetEncoder(STUNetConfig(size="S", strides=SMALL)), num_classes=2).double()
        other.load_state_dict(again)
        image, volume = randn(0, 1, 1, 1, 16, 24), randn(0, 1, 1, 4, 16, 24)
        with torch.no_grad():
            close(other(image), network(image))
            assert not torch.allclose(other(volume), network(volume))

    @pytest.mark.parametrize(("how", "back"), [("centre", "sum"), ("average", "sum"), ("fourier", "fourier")])
    def test_every_way_round_keeps_the_2d_weights(self, network, how, back):
        flat, _ = flatten_state(network.state_dict())
        orientation = torch.tensor([[0.3, -0.4, 1.1]]) if how == "fourier" else None
        solid, _ = inflate_state(flat, how, orientation)
        assert {k: v.shape for k, v in solid.items()} == {k: v.shape for k, v in network.state_dict().items()}
        again, _ = flatten_state(solid, back, orientation)
        for key, value in flat.items():
            close(again[key], value, 1e-7 if how == "fourier" else 1e-12)  # angles are float32

    def test_a_target_gives_the_depth_of_each_kernel(self):
        flat = {"stem.weight": randn(0, 4, 2, 7, 7), "table": randn(1, 1, 2, 3, 4), "stem.bias": randn(2, 4)}
        like = {
            "stem.weight": torch.zeros(4, 2, 3, 7, 7),
            "table": torch.zeros(1, 2, 3, 4),
            "stem.bias": torch.zeros(4),
        }
        solid, done = inflate_state(flat, "average", like=like)
        assert {key: value.shape for key, value in solid.items()} == {key: v.shape for key, v in like.items()}
        assert done["table"] == done["stem.bias"] == "kept"
        close(solid["stem.weight"].sum(dim=2), flat["stem.weight"])

    def test_layouts_that_differ_are_refused_by_name(self):
        flat = {"a": torch.zeros(4, 2, 3, 3)}
        with pytest.raises(UserError, match="a is not in the 3D network"):
            inflate_state(flat, like={})
        with pytest.raises(UserError, match="b of the 3D network is not in the 2D one"):
            inflate_state(flat, like={"a": torch.zeros(4, 2, 3, 3, 3), "b": torch.zeros(1)})
        with pytest.raises(UserError, match=r"a is \(4, 2, 3, 3\), which does not become the \(4, 1, 3, 3, 3\)"):
            inflate_state(flat, like={"a": torch.zeros(4, 1, 3, 3, 3)})
