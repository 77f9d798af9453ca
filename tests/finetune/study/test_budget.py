"""Time in words, and how it is dealt to cells."""

import pytest
from pydantic import TypeAdapter, ValidationError

from scanfoundry.finetune.config.time import Seconds
from scanfoundry.finetune.study.budget import Budget

PARSED = TypeAdapter(Seconds)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400), (" 2 M ", 120), (30, 30), (0.5, 0.5)]
)
def test_times_are_read(text, seconds):
    assert PARSED.validate_python(text) == seconds


@pytest.mark.parametrize("text", ["10", "ten minutes", "-5min", "0s", 0, -1, True, None, "5d"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValidationError):
        PARSED.validate_python(text)


def test_what_is_left_is_dealt_evenly_and_testing_comes_out_of_a_cells_share():
    now = [0.0]
    budget = Budget(100.0, 4, lambda: now[0])
    assert budget.training(0.0) == 25
    assert budget.training(10.0) == pytest.approx(25 - 11.5)
    now[0] = 40.0  # the first cell took longer than its share
    budget.done()
    assert budget.training(0.0) == pytest.approx(20)
    assert budget.training(100.0) == pytest.approx(6)  # testing alone is too long: a share is trained all the same
    now[0] = 1000.0
    assert budget.training(0.0) == 1.0
