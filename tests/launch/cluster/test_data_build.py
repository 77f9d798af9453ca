"""`launch data-build`: what is submitted, and the scripts run here as SLURM would run them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.launch.cli.launch_app import _options_of
from scanfoundry.launch.cluster.data_build import BuildWords, data_build_command, scripts
from scanfoundry.launch.cluster.options import ClusterConfig


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "scans of today"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(9):
        np.save(folder / f"p{number}.npy", rng.integers(0, 255, (20, 20)).astype(np.uint8))
    return folder


def test_the_scripts_build_the_data_set(inputs: Path, tmp_path: Path, fixed_key: Callable[[str], Path]) -> None:
    key = fixed_key("array")
    words = [str(inputs), "--key-file", str(key), "--shard-mb", "1"]
    config = ClusterConfig(cpus_per_task=1, partition="short", memory_gb=2, sbatch={"exclusive": True})
    parts, merge = scripts(BuildWords(words, None, 0.2), tmp_path / "out", 2, config, tmp_path / "logs")
    lines = parts.splitlines()
    assert {"#SBATCH --array=1-2%16", "#SBATCH --partition=short", "#SBATCH --mem=2048M", "#SBATCH --exclusive",
            "#SBATCH --requeue", f"#SBATCH --output={tmp_path}/logs/part-%a.out"} <= set(lines)  # fmt: skip
    assert "--array" not in merge
    assert merge.splitlines()[-3].endswith(" data merge " + str(tmp_path / "out") + " --max-bad 0.2 &")
    for number in ("2", "1"):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": number}
        subprocess.run(["bash", "-c", parts], check=True, env=environment, cwd=tmp_path)
    subprocess.run(["bash", "-c", merge], check=True, cwd=tmp_path)
    build([inputs], tmp_path / "whole", BuildOptions(key_file=key, shard_mb=1, workers=1))
    built, whole = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole"))
    assert built == whole


def test_at_its_limit_a_part_asks_to_run_again(inputs: Path, tmp_path: Path) -> None:
    """`scontrol` and the build are stand-ins: the build would take a minute, and is told to end."""
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\necho $* > {tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    script = scripts(BuildWords([str(inputs)]), tmp_path / "out", 2, ClusterConfig(max_requeues=1), tmp_path / "logs")[
        0
    ]
    command = next(line for line in script.splitlines() if line.endswith("&"))
    script = script.replace(command, "sleep 60 & kill -USR2 $$ &").replace("child=$!", "child=$(jobs -p | head -1)")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    for restarts in (1, 0):
        done = subprocess.run(["bash", "-c", script], env={**environment, "SLURM_RESTART_COUNT": str(restarts)})
        assert done.returncode == 1
        assert (tmp_path / "asked").exists() == (restarts == 0)
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


def test_submitting(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "sbatch").write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/submitted\necho "41;cluster"\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    data_build_command(BuildWords([str(inputs)]), tmp_path / "out", 3, {"cpus_per_task": 2}, None, False)
    first, second = (tmp_path / "submitted").read_text().splitlines()
    assert first.startswith("--parsable ")
    assert "--dependency=afterok:41 --kill-on-invalid-dep=yes" in second
    assert capsys.readouterr().out.startswith(f"job 41: 3 parts; job 41 merges them into {tmp_path / 'out'}; logs in")
    assert not (tmp_path / "out").exists()
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: Invalid account' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"could not submit .*build\.sh: sbatch: error: Invalid account"):
        data_build_command(BuildWords([str(inputs)]), tmp_path / "other", 3, {}, None, False)
    with pytest.raises(UserError, match="'%'"):
        data_build_command(BuildWords([str(inputs)]), tmp_path / "50%", 3, {}, None, True)


def test_words_are_checked_before_anything_is_submitted() -> None:
    found = _options_of(["scans", "--modality", "ct", "--max-bad=0.3"])
    assert (found["modality"], found["max_bad"], found["workers"]) == ("ct", 0.3, None)
    for more in (["--part", "1/2"], ["--append"], ["--out", "x"]):
        with pytest.raises(UserError, match="the jobs give them themselves"):
            _options_of(["scans", *more])
    with pytest.raises(Exception, match=r"No such option.*--colour"):
        _options_of(["scans", "--colour", "red"])
