"""A signal is never lost, whenever it comes."""

import os
import signal

from scanfoundry.pretrain.distributed import world
from scanfoundry.pretrain.distributed.preemption import StopRequest
from scanfoundry.pretrain.distributed.world import ALONE


def test_a_signal_while_the_ranks_agree_is_kept_for_the_next_time(monkeypatch):
    def agree(number, world):
        os.kill(os.getpid(), signal.SIGTERM)  # this rank waits for the others here
        return number

    with StopRequest() as stop:
        with monkeypatch.context() as patched:
            patched.setattr(world, "largest", agree)
            assert not stop.agreed(ALONE)
        assert stop.agreed(ALONE)
        assert stop.signal == signal.SIGTERM


def test_flags_of_all_ranks_summed_are_the_signal_that_stops_them():
    with StopRequest() as one, StopRequest() as other:
        assert not one.noted([a + b for a, b in zip(one.flags(), other.flags(), strict=True)])
        other.signal = signal.SIGUSR2
        sums = [a + b for a, b in zip(one.flags(), other.flags(), strict=True)]
        assert one.noted(sums)
        assert one.signal == signal.SIGUSR2
