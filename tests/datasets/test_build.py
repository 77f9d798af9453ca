import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import keyed_hash, patient_of, site_key
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.reader import DataSet


def test_summary_and_manifest(cohort: Path, options: BuildOptions, tmp_path: Path) -> None:
    (cohort / "mr" / "notes.txt").touch()
    told: list[tuple[int, int]] = []
    summary = build([cohort / "mr"], tmp_path / "out", options, lambda what, done, total: told.append((done, total)))
    assert (summary.sources, summary.scans, summary.patients, summary.quarantined) == (24, 24, 12, {})
    assert summary.ignored == {".txt": 1}
    assert told[-1] == (24, 24)
    assert told == sorted(told)
    manifest = DataSet(tmp_path / "out").manifest
    assert (manifest.scans, manifest.patients, manifest.modalities) == (24, 12, {"unknown": 24})
    assert summary.shards == len(manifest.shards) >= 3
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_same_bytes_with_any_number_of_workers(
    cohort: Path, options: BuildOptions, tmp_path: Path, contents: Callable
) -> None:
    for workers in (1, 2):
        build([cohort], tmp_path / str(workers), options.model_copy(update={"workers": workers}))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_killed_and_resumed_ends_with_the_same_bytes(
    cohort: Path, key_file: Path, tmp_path: Path, contents: Callable
) -> None:
    options = BuildOptions(key_file=key_file, shard_mb=0.03, workers=2)
    build([cohort], tmp_path / "whole", options)
    code = (
        "import sys; from pathlib import Path; from scanfoundry.datasets.shards.build import BuildOptions, build; "
        f"build([Path({str(cohort)!r})], Path(sys.argv[1]), BuildOptions.model_validate_json(sys.argv[2]))"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-c", code, str(out), options.model_dump_json()]
    victim = subprocess.Popen(command, start_new_session=True)
    while victim.poll() is None and not list((out / ".partial").glob("shard-*.tar.json")):
        time.sleep(0.002)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (out / "manifest.json").exists(), "the build was faster than the kill"
    assert build([cohort], out, options).resumed_shards >= 1
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_build_is_left_as_it_is(
    cohort: Path, options: BuildOptions, tmp_path: Path, contents: Callable
) -> None:
    first = build([cohort / "xr"], tmp_path, options)
    before = contents(tmp_path)
    again = build([cohort / "xr"], tmp_path, options)
    assert again == dataclasses.replace(first, resumed_shards=0)
    assert contents(tmp_path) == before


def test_resume_with_anything_else_is_refused(cohort: Path, options: BuildOptions, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build([cohort / "xr"], out, options)
    for change, word in [
        ({"modality": "us"}, "--modality: unknown then, us now"),
        ({"codec": "lz4hc"}, "--codec"),
        ({"shard_mb": 1.0}, "--shard-mb"),
        ({"patient_regex": r"\d+"}, "--patient-regex"),
        ({"key_file": tmp_path / "other.key"}, "site key"),
    ]:
        with pytest.raises(UserError, match=word):
            build([cohort / "xr"], out, options.model_copy(update=change))
    with pytest.raises(UserError, match="number of input scans"):
        build([cohort], out, options)


def test_bad_files_are_quarantined_with_their_reason(
    options: BuildOptions, tmp_path: Path, write_nifti: Callable, write_png: Callable
) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        write_png(tmp_path / "in" / f"{number}.png", rng.integers(0, 255, (20, 20)).astype(np.uint8))
    write_nifti(tmp_path / "in" / "five.nii", np.ones((2, 2, 2, 2, 2), np.uint8))
    (tmp_path / "in" / "cut.nii.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(UserError, match=r"2 of 14 scans could not be read.*--max-bad 0.1"):
        build([tmp_path / "in"], tmp_path / "out", options)
    # The user looks, and accepts: the build goes on.
    summary = build([tmp_path / "in"], tmp_path / "out", options.model_copy(update={"max_bad": 0.2}))
    assert (summary.scans, summary.quarantined) == (12, {"refused": 2})
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == ["cut.nii.gz", "five.nii"]
    assert "5D array" in lines[1]["reason"]


def test_inputs_that_give_nothing(options: BuildOptions, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"no scans in .*found nothing"):
        build([tmp_path / "in"], tmp_path / "out", options)
    (tmp_path / "in" / "a.dcm").touch()
    with pytest.raises(UserError, match=r"no scans in .*found 1 \.dcm"):
        build([tmp_path / "in"], tmp_path / "out", options)
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="2 of 2 scans could not be read, so nothing is left"):
        build([tmp_path / "in"], tmp_path / "out", options.model_copy(update={"max_bad": 1.0}))
    with pytest.raises(UserError, match="does not exist"):
        build([tmp_path / "nowhere"], tmp_path / "out2", options)


def test_outputs_that_cannot_be(cohort: Path, options: BuildOptions, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        build([cohort / "xr"], tmp_path, options)
    with pytest.raises(UserError, match="lies in the input folder"):
        build([cohort], cohort / "xr" / "out", options)
    with pytest.raises(UserError, match="cannot write"):
        build([cohort / "xr"], tmp_path / "precious.txt" / "out", options)


def test_two_inputs_with_one_name(options: BuildOptions, tmp_path: Path, write_png: Callable) -> None:
    for folder in "ab":
        write_png(tmp_path / folder / "1.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(UserError, match=r"two inputs hold '1\.png'"):
        build([tmp_path / "a", tmp_path / "b"], tmp_path / "out", options)


def test_nothing_that_identifies(cohort: Path, options: BuildOptions, tmp_path: Path, contents: Callable) -> None:
    rule = options.model_copy(update={"patient_regex": r"sub-\w+|Schmidt_\d+"})
    build([cohort], tmp_path / "out", rule)
    words = {part for path in cohort.rglob("*") for part in [path.name, path.stem, *path.parts] if len(part) > 3}
    words |= {"Meier", "Schmidt", "ses-", "T1w", str(cohort)}
    words |= {name for name in [os.uname().nodename] if len(name) > 3}
    for name, content in contents(tmp_path / "out").items():
        if name == "quarantine.jsonl":  # it tells the site's own people which files were left out
            continue
        assert not [word for word in words if word.encode() in content], name


def test_patients_hash_as_the_rule_says(cohort: Path, data_sets: Path, key_file: Path) -> None:
    data = DataSet(data_sets / "mr")
    found = {entry.patient for shard in data.manifest.shards for entry in data.index(shard).samples}
    paths = [path.relative_to(cohort / "mr").as_posix() for path in (cohort / "mr").rglob("*.nii.gz")]
    assert found == {keyed_hash(site_key(key_file), "patient", patient_of(path)) for path in paths}


def test_series_give_a_scan_per_volume(options: BuildOptions, tmp_path: Path, write_nifti: Callable) -> None:
    write_nifti(tmp_path / "in" / "a.nii.gz", np.arange(4 * 5 * 6 * 3, dtype=np.int16).reshape(4, 5, 6, 3))
    summary = build([tmp_path / "in"], tmp_path / "out", options)
    assert (summary.sources, summary.scans, summary.patients) == (1, 3, 1)
