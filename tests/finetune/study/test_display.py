import logging
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


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO, "scanfoundry")


def said(caplog, every, terminal=False, steps=300):
    caplog.clear()
    out = StringIO()
    with StudyDisplay(1, Console(file=out, force_terminal=terminal, width=60), every) as display:
        cell = display.begin("full-5-shots-seed0", steps, 46)
        cell.step(120, 0.51234)
        cell.tested(7)
        cell.end()
        display.finished("full-5-shots-seed0", result())
    assert "full-5-shots-seed0: " not in out.getvalue()  # the console has the bars alone
    return caplog.messages


def test_a_log_gets_a_line_when_it_is_time_and_one_for_each_cell(caplog):
    last = "full-5-shots-seed0: 300 steps in 12 s, tested"
    assert said(caplog, 0.0) == [
        "full-5-shots-seed0: step 120 of 300, loss 0.512", "full-5-shots-seed0: tested 7/46", last,
    ]  # fmt: skip
    assert said(caplog, 0.0, steps=None)[0] == "full-5-shots-seed0: step 120, loss 0.512"
    assert said(caplog, 1000.0) == [last]


@pytest.mark.parametrize("every", [0.0, 1000.0])
def test_a_terminal_has_bars_and_no_lines(caplog, every):
    assert not said(caplog, every, terminal=True)
