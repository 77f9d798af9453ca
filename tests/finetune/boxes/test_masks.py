import numpy as np
import pytest

from scanforge.configs.errors import UserError
from scanforge.finetune.boxes.masks import of_mask


@pytest.fixture
def mask():
    """Value 1 in two parts, value 2 in one that touches the first of them, value 5 in two parts."""
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, 2:5, 2:6] = 1
    mask[0, 10:14, 1:3] = 1
    mask[0, 2:6, 6:8] = 2
    return mask


def test_each_part_of_a_value_is_a_finding_of_its_class(mask):
    found = of_mask(mask, 2, 1, "components")
    assert found.boxes.tolist() == [[0, 2, 2, 1, 5, 6], [0, 10, 1, 1, 14, 3], [0, 2, 6, 1, 6, 8]]
    assert found.labels.tolist() == [0, 0, 1]
    assert of_mask(mask, 2, 9, "components").boxes.tolist() == [[0, 2, 2, 1, 5, 6]]


def test_with_one_class_all_that_is_not_zero_is_it(mask):
    found = of_mask(mask, 1, 1, "components")
    assert found.boxes.tolist() == [[0, 2, 2, 1, 6, 8], [0, 10, 1, 1, 14, 3]]
    assert found.labels.tolist() == [0, 0]


def test_instances_are_told_apart_by_their_value_alone(mask):
    mask[mask == 2] = 7
    found = of_mask(mask, 1, 1, "instances")
    assert found.boxes.tolist() == [[0, 2, 1, 1, 14, 6], [0, 2, 6, 1, 6, 8]]
    assert found.labels.tolist() == [0, 0]


def test_an_empty_mask_has_no_finding(mask):
    for n_classes, how in [(1, "components"), (2, "components"), (1, "instances")]:
        found = of_mask(np.zeros_like(mask), n_classes, 1, how)
        assert found.boxes.shape == (0, 6)
        assert found.labels.shape == (0,)


def test_a_value_without_a_class_is_refused(mask):
    mask[mask == 2] = 5
    with pytest.raises(UserError, match="the value 5, but there are 2 classes"):
        of_mask(mask, 2, 1, "components")


def test_instances_of_several_classes_are_refused(mask):
    with pytest.raises(UserError, match=r"task\.masks=instances needs one class"):
        of_mask(mask, 2, 1, "instances")
