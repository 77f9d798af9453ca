import pytest

from scanforge.configs.errors import UserError
from scanforge.finetune.boxes.findings import of_list


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
