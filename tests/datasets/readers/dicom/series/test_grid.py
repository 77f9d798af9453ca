"""Stacks of planes by themselves: what is regular, what is not, over random geometry."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scanfoundry.datasets.readers.dicom.conversion.placement import checked_affine, corners_apart, turn_like
from scanfoundry.datasets.readers.dicom.series.grid import Plane, stack
from scanfoundry.datasets.readers.scan import ReadError


def rotation(seed: int) -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix


def planes(axes: np.ndarray, heights: list[float], repeat: int = 1) -> list[Plane]:
    normal = np.cross(axes[0], axes[1])
    origin = np.array([11.0, -7.0, 3.0])
    made = [Plane(tuple(origin + h * normal), (*axes[0], *axes[1]), (0.7, 0.5), 12, 10) for h in heights]
    return [plane for plane in made for _ in range(repeat)]


@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), step=st.floats(0.1, 12), repeat=st.integers(1, 4))
def test_a_regular_stack_in_any_order(seed: int, count: int, step: float, repeat: int) -> None:
    axes, rng = rotation(seed), np.random.default_rng(seed)
    given_planes = planes(axes, [k * step for k in range(count)], repeat)
    shuffled = [given_planes[k] for k in rng.permutation(len(given_planes))]
    grid = stack(shuffled)
    assert (grid.shape, grid.volumes, grid.shear) == ((10, 12, count), repeat, 0.0)
    assert np.linalg.norm(grid.affine[:3, 2]) == pytest.approx(step, rel=1e-6)
    last = np.diag([-1.0, -1, 1]) @ (grid.affine @ [0, 0, count - 1, 1])[:3]
    assert last == pytest.approx(given_planes[-1].position, abs=1e-6)
    assert [shuffled[group[0]].position for group in grid.members] == [p.position for p in given_planes[::repeat]]


@given(seed=st.integers(0, 99), count=st.integers(3, 30), hole=st.integers(1, 28), step=st.floats(0.3, 10))
def test_a_missing_slice_is_never_overlooked(seed: int, count: int, hole: int, step: float) -> None:
    assume(hole < count - 1)
    heights = [k * step for k in range(count) if k != hole]
    assume(len(heights) > 2)
    with pytest.raises(ReadError, match=r"missing|spacing varies"):
        stack(planes(rotation(seed), heights))


@given(count=st.integers(4, 30), moved=st.integers(1, 28), step=st.floats(0.5, 10), share=st.floats(0.3, 0.7))
def test_a_moved_slice_is_never_overlooked(count: int, moved: int, step: float, share: float) -> None:
    assume(moved < count - 1)
    heights = [k * step + (k == moved) * share * step for k in range(count)]
    with pytest.raises(ReadError, match=r"spacing varies|missing"):
        stack(planes(np.eye(3), heights))


@given(count=st.integers(2, 200), step=st.floats(0.5, 6), decimals=st.integers(1, 6), start=st.floats(-500, 500))
def test_rounding_of_positions_is_accepted(count: int, step: float, decimals: int, start: float) -> None:
    assume(decimals > 1 or step >= 0.6)
    grid = stack(planes(np.eye(3), [round(start + k * step, decimals) for k in range(count)]))
    assert np.linalg.norm(grid.affine[:3, 2]) == pytest.approx(
        step, abs=0.11 * 10 ** (1 - decimals) / max(1, count - 1)
    )


@given(seed=st.integers(0, 10**4), flips=st.tuples(*[st.booleans()] * 3), off=st.floats(0.01, 5))
def test_place_accepts_turned_axes_and_nothing_else(seed: int, flips: tuple[bool, ...], off: float) -> None:
    grid = stack(planes(rotation(seed), [k * 2.0 for k in range(6)]))
    turned = grid.affine.copy()
    for axis, flip in enumerate(flips):
        if flip:
            turned[:3, 3] += turned[:3, axis] * (grid.shape[axis] - 1)
            turned[:3, axis] *= -1
    assert np.array_equal(turn_like(turned, grid.affine, grid.shape), turned)
    assert checked_affine(turned, grid.shape, grid) is turned
    moved = turned.copy()
    moved[seed % 3, 3] += off
    assert corners_apart(moved, turned, grid.shape) == pytest.approx(off)
    assert checked_affine(moved, grid.shape, grid) is None
    assert checked_affine(turned, (10, 12, 7), grid) is None


def test_frames_that_do_not_fit_together() -> None:
    first, *rest = planes(np.eye(3), [0.0, 1.0, 2.0])
    with pytest.raises(ReadError, match="different sizes"):
        stack([first, Plane(rest[0].position, first.orientation, first.spacing, 12, 11)])
    with pytest.raises(ReadError, match="perpendicular"):
        stack([Plane((0, 0, k), (1, 0, 0, 0.5, 0.5, 0), (1, 1), 4, 4) for k in range(3)])
    with pytest.raises(ReadError, match="different orientations"):
        stack([first, Plane(rest[0].position, (0, 1, 0, 1, 0, 0), first.spacing, 12, 10)])
    with pytest.raises(ReadError, match="side by side"):
        stack([first, *rest, Plane((50, -7, 4), first.orientation, first.spacing, 12, 10)])
    with pytest.raises(ReadError, match="on a line"):
        stack([Plane((2.0 * (k % 2), 0, k), first.orientation, first.spacing, 12, 10) for k in range(5)])
