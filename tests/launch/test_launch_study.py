"""Fine-tuning studies by `scanfoundry launch`, trial by trial. On SLURM: test_slurm.py."""

import json

import pytest

pytestmark = pytest.mark.xdist_group("cluster")


def test_a_launched_study_ends_with_its_report(study_lab, tools):
    _, notes, _, _ = tools
    study = study_lab.folder / "study"
    said = study_lab.launch(study_lab.study("study"), "--cluster", "local")
    trials = sorted(path for path in (study / "cells").iterdir())
    assert [trial.name for trial in trials] == ["scratch-2-shots-seed0", "scratch-2-shots-seed1"]
    assert said.count("complete: ") == 2
    assert (study / "report.html").exists()
    assert len(json.loads((study / "results.json").read_text())["cells"]) == 2
    assert [notes(trial)[-1]["kind"] for trial in trials] == ["complete"] * 2
    assert study_lab.launch("status", study).count("COMPLETED") == 2
    assert "all trials are finished; the report is" in study_lab.launch("logs", trials[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "2"], "one process"),
        (["data.images=/nowhere"], "nowhere"),
        (["shots=[0]"], "shots"),
        (["seeds=[]"], "seeds"),
    ],
)
def test_what_a_study_cannot_do_is_one_line_before_anything_is_queued(study_lab, words: list[str], said: str):
    heard = study_lab.launch(study_lab.study("study"), *words, code=2)
    assert said in heard
    assert len(heard.strip().splitlines()) == 1
    assert not (study_lab.folder / "study").exists()


def test_a_dry_run_lists_the_trials_and_the_array(study_lab):
    said = study_lab.launch(study_lab.study("study"), "--dry-run", "--gpus-per-node", "1")
    assert "cells/scratch-2-shots-seed1" in said
    assert "#SBATCH --array=0-1%2" in said
    assert not (study_lab.folder / "study").exists()
