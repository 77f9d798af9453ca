"""The one form of boxes: pairs in and out, equality, and the checksum of labels that it must not change."""

from zlib import crc32

import numpy as np

from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.checks.check import _digest

PAIRS = [((0.0, 2.0, 1.5, 1.0, 8.0, 5.0), 0), ((0.0, 7.0, 7.0, 1.0, 9.0, 9.25), 1)]


def test_pairs_come_out_as_they_went_in():
    boxes = Boxes.of(PAIRS)
    assert boxes.listed() == PAIRS
    assert (boxes.corners.shape, boxes.labels.dtype, len(boxes)) == ((2, 6), np.int64, 2)
    assert Boxes.of([]).corners.shape == (0, 6)


def test_equal_where_every_number_is():
    boxes = Boxes.of(PAIRS)
    assert boxes == Boxes.of(PAIRS)
    assert hash(boxes) == hash(Boxes.of(PAIRS))
    assert boxes != Boxes.of(PAIRS[::-1])
    scored = Boxes(boxes.corners, boxes.labels, np.array([0.9, 0.2]))
    assert boxes != scored
    assert scored.take(np.array([1])) == Boxes(boxes.corners[1:], boxes.labels[1:], np.array([0.2]))
    assert Boxes.joined([scored.take(np.array([0])), scored.take(np.array([1]))]) == scored


def test_scaled_to_another_grid():
    scaled = Boxes.of(PAIRS[:1]).scaled((2.0, 0.5, 4.0))
    assert scaled.corners.tolist() == [[0.0, 1.0, 6.0, 2.0, 4.0, 20.0]]


def test_checksums_of_cases_are_those_of_earlier_versions():
    one = "(LabelledBox(box=(0.0, 2.0, 1.5, 1.0, 8.0, 5.0), label=0),)"
    two = one[:-2] + ", LabelledBox(box=(0.0, 7.0, 7.0, 1.0, 9.0, 9.25), label=1))"
    for boxes, text in ((Boxes.of([]), "()"), (Boxes.of(PAIRS[:1]), one), (Boxes.of(PAIRS), two)):
        assert _digest([boxes]) == crc32(text.encode())
