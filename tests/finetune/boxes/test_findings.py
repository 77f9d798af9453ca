import numpy as np
import pytest

from scanforge.configs.errors import UserError
from scanforge.finetune.boxes.findings import of_list, of_mask


@pytest.fixture
def mask():
    """Value 1 in two parts, value 2 in one that touches the first of them, value 5 in two parts."""
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, 2:5, 2:6] = 1
    mask[0, 10:14, 1:3] = 1
    mask[0, 2:6, 6:8] = 2
    return mask


def test_each_part_of_a_value_is_a_finding_of_its_class(mask):
    found = of_mask(mask, 2, 1, False)
    assert found.boxes.tolist() == [[0, 2, 2, 1, 5, 6], [0, 10, 1, 1, 14, 3], [0, 2, 6, 1, 6, 8]]
    assert found.labels.tolist() == [0, 0, 1]
    assert of_mask(mask, 2, 9, False).boxes.tolist() == [[0, 2, 2, 1, 5, 6]]


def test_with_one_class_all_that_is_not_zero_is_it(mask):
    found = of_mask(mask, 1, 1, False)
    assert found.boxes.tolist() == [[0, 2, 2, 1, 6, 8], [0, 10, 1, 1, 14, 3]]
    assert found.labels.tolist() == [0, 0]


def test_instances_are_told_apart_by_their_value_alone(mask):
    mask[mask == 2] = 7
    found = of_mask(mask, 1, 1, True)
    assert found.boxes.tolist() == [[0, 2, 1, 1, 14, 6], [0, 2, 6, 1, 6, 8]]
    assert found.labels.tolist() == [0, 0]


def test_an_empty_mask_has_no_finding(mask):
    for n_classes, instances in [(1, False), (2, False), (1, True)]:
        found = of_mask(np.zeros_like(mask), n_classes, 1, instances)
        assert found.boxes.shape == (0, 6)
        assert found.labels.shape == (0,)


def test_a_value_without_a_class_is_refused(mask):
    mask[mask == 2] = 5
    with pytest.raises(UserError, match="the value 5, but there are 2 classes"):
        of_mask(mask, 2, 1, False)


def test_instances_of_several_classes_are_refused(mask):
    with pytest.raises(UserError, match=r"task\.instances needs one class"):
        of_mask(mask, 2, 1, True)


def test_lists_with_and_without_labels():
    box = (0.0, 1.0, 2.0, 1.0, 4.0, 5.5)
    assert of_list([box], 1, (1, 8, 8)).labels.tolist() == [0]
    found = of_list([(box, 1), (box, 0)], 2, (1, 8, 8))
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [list(box)] * 2
    assert of_list([], 2, (1, 8, 8)).boxes.shape == (0, 6)


@pytest.mark.parametrize(
    ("box", "label", "said"),
    [
        ((0, 3, 3, 1, 3, 5), 0, "empty"),
        ((0, 5, 3, 1, 4, 5), 0, "empty"),
        ((0, float("nan"), 3, 1, 4, 5), 0, "empty or no box"),
        ((0, 1, 1, 1, 9, 5), 0, "outside"),
        ((-1, 1, 1, 1, 3, 5), 0, "outside"),
        ((0, 1, 1, 1, 3, 5), 2, "label 2, but there are 2 classes"),
    ],
)
def test_wrong_boxes_are_refused_by_one_line(box, label, said):
    with pytest.raises(UserError, match=said) as error:
        of_list([(box, label)], 2, (1, 8, 8))
    assert "\n" not in str(error.value)
