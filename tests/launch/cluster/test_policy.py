"""When a job lives again, and when not."""

from dataclasses import replace

import pytest

from scanfoundry.launch.cluster.job_folder import End, JobFolder, JobRecord
from scanfoundry.launch.cluster.policy import HUNG, combine_ends, decide

FACTS = JobRecord(
    cluster="slurm", run_dir="run", logs="logs", tasks=2, steps=100, host="here", submitted=0.0, timeout_min=60,
    signal_delay_s=120, max_requeues=5, max_crash_requeues=3,
)  # fmt: skip


def said(*kinds: str) -> dict[int, dict[str, str]]:
    return {rank: {"kind": kind, "reason": f"rank {rank}"} for rank, kind in enumerate(kinds)}


@pytest.mark.parametrize(
    ("ends", "code", "cancelled", "kind"),
    [
        (said("complete", "complete"), 0, False, "complete"),
        (said("complete", "complete"), 0, True, "complete"),  # the cancel came too late
        (said("complete"), 137, False, "crashed"),  # the other was killed before it was done
        (said("stopped", "stopped"), 75, False, "stopped"),
        (said("stopped", "stopped"), 75, True, "cancelled"),
        (said("final"), 137, False, "final"),  # the survivors of a mistake are killed
        (said("crashed"), 143, False, "crashed"),
        (said("crashed", "unreachable"), 74, False, "unreachable"),  # the cause, and whom it took along
        (said("interrupted", "interrupted"), 130, False, "interrupted"),
        ({}, 137, False, "crashed"),
        ({}, HUNG, False, "crashed"),
        ({}, 140, False, "stopped"),  # USR2 before the handlers stood
        ({}, 143, False, "stopped"),
        ({}, 1, False, "crashed"),
        ({}, 2, False, "final"),  # the disk was too full to say so
        ({}, 0, False, "crashed"),  # nobody said that anything was done
        ({}, 137, True, "cancelled"),
    ],
)
def test_the_end_of_a_life(ends: dict, code: int, cancelled: bool, kind: str):
    assert combine_ends(ends, 2, code, cancelled, 7).kind == kind


def test_the_ranks_that_said_nothing_are_named():
    assert combine_ends(said("crashed"), 2, 137, False, 7).reason == "rank 0; killed without a word: rank 1"
    assert combine_ends(said("crashed"), 64, 137, False, 7).reason.endswith("rank 63 of 64")


def test_a_stopped_or_lost_life_is_followed_by_another_and_a_mistake_is_not():
    for kind, action in (("stopped", "requeue"), ("crashed", "requeue"), ("complete", "end"), ("final", "end"),
                         ("interrupted", "end"), ("cancelled", "end")):  # fmt: skip
        assert decide([], End(kind, 5), FACTS).action == action
    assert decide([], End("final", 5, "lower optimiser.lr"), FACTS).code == 2
    assert "lower optimiser.lr" in decide([], End("final", 5, "lower optimiser.lr"), FACTS).reason


def test_crashes_without_a_new_checkpoint_are_bounded():
    past: list[End] = []
    for _ in range(3):
        assert decide(past, End("crashed", 5, "killed"), FACTS).action == "requeue"
        past.append(End("crashed", 5, "killed"))
    verdict = decide(past, End("crashed", 5, "killed"), FACTS)
    assert (verdict.action, verdict.code) == ("end", 1)
    assert "4 times" in verdict.reason
    assert "step 5" in verdict.reason
    assert decide(past, End("crashed", 6, "killed"), FACTS).action == "requeue"  # progress
    assert decide(past, End("stopped", 5), FACTS).action == "requeue"  # preempted, which is nobody's fault


def test_storage_that_is_away_is_waited_for_longer_each_time_and_not_for_ever():
    past: list[End] = []
    for wait_s in (60, 300, 1200):
        verdict = decide(past, End("unreachable", 5, "stale file handle"), FACTS)
        assert (verdict.action, verdict.wait_s) == ("requeue", wait_s)
        past.append(End("unreachable", 5))
    assert "stale file handle; to be continued from step 5 in 20 minutes" in verdict.reason
    assert decide(past, End("unreachable", 5, "stale"), FACTS).action == "end"
    assert decide(past, End("unreachable", 6), FACTS).wait_s == 60  # it came to a new checkpoint in between
    assert decide([End("crashed", 5)] * 2, End("crashed", 5), FACTS).wait_s == 0
    assert decide([End("crashed", 5)] * 2 + past[:1], End("crashed", 5), FACTS).action == "end"  # bounded together


def test_preemptions_between_crashes_do_not_hide_them():
    past = [End("crashed", 5), End("stopped", 5), End("crashed", 5), End("crashed", 5)]
    assert decide(past, End("crashed", 5), FACTS).action == "end"


def test_a_job_that_never_gets_to_a_checkpoint_ends_too():
    past = [End("stopped", 0)] * 5
    verdict = decide(past, End("stopped", 0), FACTS)
    assert verdict.action == "end"
    assert "no checkpoint" in verdict.reason
    assert decide(past, End("stopped", 1), FACTS).action == "requeue"
    assert decide([End("crashed", 0)], End("crashed", 0), replace(FACTS, max_crash_requeues=1)).action == "end"


def test_the_job_folder_gives_back_what_it_was_told(tmp_path):
    job = JobFolder(tmp_path / "jobs" / "one")
    job.write_record(FACTS)
    assert job.record() == FACTS
    job.write_end("12-0", 1, "stopped", "saved")
    job.write_end("12-1", 0, "final", "of another life")
    assert job.ends("12-0") == {1: {"kind": "stopped", "reason": "saved"}}
    job.note("start", life="12-0", step=0)
    job.note("end", life="12-0", kind="stopped", step=4, reason="saved", action="requeue")
    with open(job.path / "lives.jsonl", "a") as handle:
        handle.write('{"event": "sta')  # the half line of a killed writer
    assert job.past() == [End("stopped", 4, "saved")]
    assert not job.is_cancelled
    job.cancel()
    assert job.is_cancelled
