"""Names of classes in figures, whatever signs they hold."""

import pytest

from scanfoundry.finetune.drawing.charts import confusion


@pytest.mark.parametrize("name", ["$\\frac$", "$x$", "a$b$c", "\\", "$", "_{x}^", "<b>"])
def test_a_name_is_no_formula(name):
    classes = [name, "other"]
    records = [{"label": k % 2, "probabilities": [0.3, 0.7]} for k in range(4)]
    assert confusion(records, classes).startswith("data:image/png")


@pytest.mark.filterwarnings("error")
def test_a_control_character_in_a_name_is_said_not_drawn():
    records = [{"label": k % 2, "probabilities": [0.3, 0.7]} for k in range(4)]
    assert confusion(records, ["a\x1b[31m", "b\u202ec"]).startswith("data:image/png")
