"""A hung process says so, shows its stacks and ends, even while C code holds the interpreter's lock."""

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import ctypes, sys, threading, time
from scanfoundry.pretrain.distributed.watchdog import Watchdog
def a_step_that_hangs(how):
    if how == "lock held":
        ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the interpreter's lock
    elif how == "waiting":
        threading.Event().wait(60)
if sys.argv[1] != "no hang":
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
with Watchdog(1.0, rank=3) as dog:
    for step in range(5):
        time.sleep(0.3)
        dog.beat(step + 1)
    a_step_that_hangs(sys.argv[1])
time.sleep(2.5)
print("lived on")
"""


def run(how: str, script: str = SCRIPT) -> tuple[subprocess.CompletedProcess, float]:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - started


@pytest.mark.parametrize("how", ["waiting", "lock held"])
def test_a_hang_ends_with_the_stacks_of_all_threads(how: str):
    done, seconds = run(how)
    assert done.returncode == -signal.SIGALRM
    assert "a_step_that_hangs" in done.stderr
    assert done.stderr.count("most recent call first") >= 2
    assert seconds < 30
    if how == "waiting":
        assert "rank 3 finished no step for 1 s since step 5 (step_timeout_s)" in done.stderr
        assert done.stderr.index("rank 3") < done.stderr.index("most recent call first")


def test_steps_that_come_in_time_and_a_run_that_is_over_are_left_alone():
    done, _ = run("no hang")
    assert done.returncode == 0
    assert "lived on" in done.stdout
    assert done.stderr == ""


def test_the_first_step_may_take_three_times_as_long():
    imports = "import time\nfrom scanfoundry.pretrain.distributed.watchdog import Watchdog\n"
    script = imports + "with Watchdog(1.0):\n    time.sleep({})"
    assert run("", script.format(2.0))[0].returncode == 0
    done, _ = run("", script.format(30))
    assert done.returncode == -signal.SIGALRM
    assert "no step for 3 s since the start" in done.stderr


def test_a_timer_that_was_there_before_goes_on():
    script = """
import signal, time
from scanfoundry.pretrain.distributed.watchdog import Watchdog
rang = []
signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.5)
with Watchdog(60):
    assert not rang
time.sleep(1)
assert rang
"""
    done, _ = run("", script)
    assert done.returncode == 0, done.stderr
