"""A study and a prediction that are killed while dcm2niix works leave no header for longer than to their next start."""

import os
import signal
import subprocess
import sys
import time

import pytest

from scanfoundry.finetune.predict.prediction import predict
from scanfoundry.finetune.run_study import run

STUDY = """
import sys
from pathlib import Path
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.run_study import run
run(FinetuneConfig.model_validate_json(Path(sys.argv[1]).read_text()))
"""
PREDICTION = """
import sys
from pathlib import Path
from scanfoundry.finetune.predict.prediction import predict
predict(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]), "cpu")
"""


@pytest.fixture
def ward(tmp_path, dicom, write_key):
    """Six series of as many patients, a class of each."""
    rows = ["id,class"]
    for number in range(6):
        dicom.slices(
            tmp_path / "images" / f"s{number}", [(0.0, 0.0, 2.0 * k) for k in range(8)],
            pixels=lambda k, number=number: dicom.texture(40, 36, k + 20 * number),
            SeriesInstanceUID=f"1.2.77.{number}", StudyInstanceUID=f"1.2.78.{number}", PatientID=f"K-{number}",
        )  # fmt: skip
        rows.append(f"s{number},{'ab'[number % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    write_key(tmp_path / "site.key", "summer")  # with it, a patient of each class is trained and tested on
    return tmp_path


@pytest.fixture
def killed(tmp_path):
    """Start Python code with a converter that copies its input and never ends, kill it and all that it started then."""
    script, site = tmp_path / "bin" / "dcm2niix", tmp_path / "bin" / "sitecustomize.py"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nfor last; do :; done\ncp "$last"/* "$last/../out/"\nsleep 60\n')
    script.chmod(0o755)
    site.write_text(f"import dcm2niix\ndcm2niix.bin = {str(script)!r}\n")
    (tmp_path / "tmp").mkdir()

    def kill(code, place, *words):
        environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(site.parent)}
        victim = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)], env=environment, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not list(place.glob(".scratch-*/out/000007.dcm")):
            assert victim.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(victim.pid, signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        assert not list((tmp_path / "tmp").glob("scanfoundry*"))
        assert telling(place)

    return kill


def telling(folder):
    """Files that hold the patient's name."""
    return [path for path in folder.rglob("*") if path.is_file() and b"Doe^Jane" in path.read_bytes()]


def test_the_next_start_clears(ward, killed, study):
    config = study("classification", ward, "ct", shots=[1])
    config = config.model_copy(update={"data": config.data.model_copy(update={"key_file": ward / "site.key"})})
    (ward / "config.json").write_text(config.model_dump_json())
    killed(STUDY, config.run_dir, ward / "config.json")
    result = run(config)
    assert result.report.exists()
    assert not telling(config.run_dir)
    assert {path.name for path in config.run_dir.glob(".*")} == {".lock"}  # which a run folder keeps
    killed(PREDICTION, ward / "out", result.model, ward / "images", ward / "out")
    written = predict(result.model, [ward / "images"], ward / "out", "cpu")
    assert [path.name for path in written] == ["predictions.csv"]
    assert [path.name for path in (ward / "out").iterdir()] == ["predictions.csv"]
