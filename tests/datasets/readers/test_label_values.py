"""The values of masks: exact, counted, and black and white only where they clearly are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from scanfoundry.datasets.readers.grey_levels import are_flat, clearly_black_and_white, distinct, rounded, runs_of
from scanfoundry.datasets.readers.label_values import exact, is_white, whole_numbers
from scanfoundry.datasets.readers.scan import ReadError

SHAPES = array_shapes(min_dims=3, max_dims=3, max_side=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.one_of(
        arrays(np.int64, SHAPES, elements=st.integers(-(2**31), 2**32 - 1)),
        arrays(np.uint8, SHAPES),
        arrays(np.float32, SHAPES, elements=st.integers(-300, 300).map(float)),
        arrays(np.uint16, SHAPES, elements=st.integers(0, 9)),
    )
)
def test_numbers_are_kept_and_counted(values: np.ndarray) -> None:
    if values.min() < 0 and values.max() > 2**31 - 1 and values.dtype == np.int64:
        assert np.array_equal(exact(values), values)
        return
    found = exact(values)
    assert found.dtype.kind in "iu"
    assert np.array_equal(found, values)
    assert distinct(found) == dict(zip(*(part.tolist() for part in np.unique(found, return_counts=True)), strict=True))
    runs = runs_of(found)
    pairs = [(a, b) for a, b in zip(found[..., :-1].ravel(), found[..., 1:].ravel(), strict=True) if a and b]
    assert sum(total for total, _ in runs.values()) == len(pairs)
    assert sum(same for _, same in runs.values()) == sum(a == b for a, b in pairs)


@pytest.mark.parametrize("bad", [0.5, -0.25, np.nan, np.inf, 2.0**33, -(2.0**40)])
def test_what_is_no_whole_number_is_refused(bad: float) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ReadError, match="whole numbers"):
        exact(np.array([[[0.0, bad]]]))


def test_probabilities_are_called_so() -> None:
    with pytest.raises(ReadError, match="probabilities"):
        exact(np.array([[[0.0, 0.25, 1.0]]]))
    with pytest.raises(ReadError, match="whole numbers"):
        whole_numbers(np.array([[[0, -1]]]), image=False)


def test_white_is_white_only_in_bytes() -> None:
    assert is_white(np.array([[[0, 255]]], np.uint8))
    assert not is_white(np.array([[[0, 255]]], np.uint16))
    assert not is_white(np.array([[[0, 1, 255]]], np.uint8))
    assert not is_white(np.zeros((1, 2, 2), np.uint8))


def counts(**values: int) -> np.ndarray:
    found = np.zeros(256, np.int64)
    for name, number in values.items():
        found[int(name[1:])] = number
    return found


def test_classes_are_never_taken_for_black_and_white() -> None:
    """Small numbers beside 255, and a third value among the greys of a lossy file."""
    assert not clearly_black_and_white(counts(v0=9000, v1=300, v2=300, v255=400), False)
    assert not clearly_black_and_white(counts(v0=9000, **{f"v{k}": 100 for k in range(1, 19)}, v255=400), False)
    assert not clearly_black_and_white(counts(v0=9000, v1=30, v254=30, v255=400), False)
    ringing = {f"v{k}": 9 for k in (*range(1, 12), *range(240, 255))}
    assert clearly_black_and_white(counts(v0=9000, v255=900, **ringing), False)
    assert clearly_black_and_white(counts(v0=9000, v255=900, **ringing), True)
    assert not clearly_black_and_white(counts(v0=9000, v255=900, v127=40, **ringing), True)
    assert not clearly_black_and_white(counts(v0=9000, v127=900), True)
    assert not clearly_black_and_white(counts(v0=9000), True)


def test_greys_are_rounded_where_the_levels_are_clear() -> None:
    greys = {0: 900, 3: 20, 120: 20, 127: 300, 131: 15, 250: 10, 255: 400}
    assert rounded(greys, [0, 127, 255]) == {0: 0, 3: 0, 120: 127, 127: 127, 131: 127, 250: 255, 255: 255}
    assert rounded(greys, [0, 255]) is None  # 127 stands out
    assert rounded({0: 90, 1: 9, 2: 9}, [0, 1]) is None  # too close to be told apart
    assert rounded({0: 90, 64: 9, 255: 9}, [0, 127, 255]) is None
    assert rounded({-1: 90, 0: 9}, [0, 127]) is None


def test_regions_are_flat_and_pictures_are_not() -> None:
    organs = np.repeat(np.repeat(np.arange(1, 65).reshape(1, 8, 8), 4, 1), 4, 2)
    assert are_flat(runs_of(organs))
    assert not are_flat(runs_of(np.random.default_rng(0).integers(0, 60, (1, 60, 60))))
    assert not are_flat({})
