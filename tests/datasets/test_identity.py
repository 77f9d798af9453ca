import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scanforge.configs.errors import UserError
from scanforge.datasets.identity import fraction, keyed_hash, patient_of, site_key


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "site.key"
    key = site_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert site_key(path) == key
    monkeypatch.setenv("SCANFORGE_KEY_FILE", str(path))
    assert site_key() == key
    assert [file.name for file in path.parent.iterdir()] == ["site.key"]


def test_processes_at_once_agree_on_the_key(tmp_path: Path) -> None:
    code = "import sys, pathlib; from scanforge.datasets.identity import site_key; "
    code += "print(site_key(pathlib.Path(sys.argv[1])).hex())"
    command = [sys.executable, "-c", code, str(tmp_path / "site.key")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in running}) == 1


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "ab" * 31])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "site.key").write_text(content)
    with pytest.raises(UserError, match="not a site key"):
        site_key(tmp_path / "site.key")


def test_hashes_depend_on_key_kind_and_text() -> None:
    hashes = {keyed_hash(key, kind, text) for key in (b"a", b"b") for kind in ("x", "y") for text in ("1", "2")}
    assert len(hashes) == 8
    assert all(len(each) == 32 for each in hashes)


@pytest.mark.parametrize(
    ("path", "regex", "patient"),
    [
        ("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", None, "sub-01"),
        ("flat/sub-A7_T1w.nii.gz", None, "sub-A7"),
        ("folder/case_7.nii.gz", None, "folder/case_7"),
        ("folder/case.7.PNG", None, "folder/case.7"),
        ("resub-mission/a.png", None, "resub-mission/a"),
        ("PGBM-001_19911119/t1.nii.gz", r"PGBM-\d+", "PGBM-001"),
        ("x/P12_b.png", r"P(\d+)_", "12"),
    ],
)
def test_patients_from_paths(path: str, regex: str | None, patient: str) -> None:
    assert patient_of(path, regex) == patient


def test_a_shared_study_is_the_patient_where_nothing_else_names_one() -> None:
    assert patient_of("s/t1.nii.gz", None, "s/") == "s/"
    assert patient_of("sub-1/t1.nii.gz", None, "s/") == "sub-1"
    assert patient_of("P7/t1.nii.gz", r"P\d", "s/") == "P7"


def test_a_pattern_that_misses_a_file_is_refused() -> None:
    with pytest.raises(UserError, match="does not match 'other'"):
        patient_of("other", r"P\d+")


def test_fractions_are_even() -> None:
    fractions = [fraction(keyed_hash(b"k", "patient", str(number))) for number in range(4000)]
    assert all(0 <= each < 1 for each in fractions)
    assert abs(sum(each < 0.2 for each in fractions) / 4000 - 0.2) < 0.02
