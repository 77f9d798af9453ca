from io import StringIO

import pytest
from rich.console import Console

from scanfoundry.finetune.study.display import StudyDisplay
from scanfoundry.finetune.study.trial import TrialResult
from scanfoundry.finetune.training.setup import History


def result():
    histories = [History(steps=300, seconds=12.4, loss=[])]
    return TrialResult(
        digest="", arm="full", shots=5, seed=0, train_cases=[], unlabelled_cases=0, histories=histories,
        validation=[], temperature=1, postprocess=[], records=[],
    )  # fmt: skip


def said(every, terminal=False, steps=300):
    out = StringIO()
    with StudyDisplay(1, Console(file=out, force_terminal=terminal, width=60), every) as display:
        cell = display.begin("full-5-shots-seed0", steps, 46)
        cell.step(120, 0.51234)
        cell.tested(7)
        cell.end()
        display.finished("full-5-shots-seed0", result())
    return [line.strip() for line in out.getvalue().splitlines() if line.startswith("full-5-shots-seed0: ")]


def test_a_log_gets_a_line_when_it_is_time_and_one_for_each_cell():
    last = "full-5-shots-seed0: 300 steps in 12 s, tested"
    assert said(0.0) == [
        "full-5-shots-seed0: step 120 of 300, loss 0.512", "full-5-shots-seed0: tested 7/46", last,
    ]  # fmt: skip
    assert said(0.0, steps=None)[0] == "full-5-shots-seed0: step 120, loss 0.512"
    assert said(1000.0) == [last]


@pytest.mark.parametrize("every", [0.0, 1000.0])
def test_a_terminal_has_bars_and_no_lines(every):
    assert not said(every, terminal=True)
