import os
import re
import secrets
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import fraction, keyed_hash, patient_of, site_key


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "site.key"
    key = site_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert site_key(path) == key
    monkeypatch.setenv("SCANFOUNDRY_KEY_FILE", str(path))
    assert site_key() == key
    assert [file.name for file in path.parent.iterdir()] == ["site.key"]


def test_processes_at_once_agree_on_the_key(tmp_path: Path) -> None:
    code = "import sys, pathlib; from scanfoundry.datasets.identity import site_key; "
    code += "print(site_key(pathlib.Path(sys.argv[1])).hex())"
    command = [sys.executable, "-c", code, str(tmp_path / "site.key")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in running}) == 1


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "ab" * 31])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match="not a site key"):
        site_key(key_of(tmp_path / "site.key", content))


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


def key_of(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o666, 0o755, 0o602])
def test_a_key_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = key_of(tmp_path / "my site.key", secrets.token_hex(32), mode)
    with pytest.raises(UserError, match="may read the site key") as error:
        site_key(path)
    command = re.search(r"chmod 600 \S*'[^']*'|chmod 600 \S+", str(error.value))
    assert command is not None
    subprocess.run(command[0], shell=True, check=True)
    assert site_key(path).hex() == path.read_text()


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_the_owner_s_own_modes_are_taken(tmp_path: Path, mode: int) -> None:
    path = key_of(tmp_path / "site.key", secrets.token_hex(32) + "\n", mode)
    assert site_key(path).hex() == path.read_text().strip()


def test_a_link_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    path = key_of(tmp_path / "real", secrets.token_hex(32))
    (tmp_path / "site.key").symlink_to(path)
    assert site_key(tmp_path / "site.key").hex() == path.read_text()
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        site_key(tmp_path / "site.key")


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_of(tmp_path / "site.key", secrets.token_hex(32))
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 7)
    if owner:
        with pytest.raises(UserError, match="install -m 600"):
            site_key(path)
    else:  # root's, which this user was allowed to read
        assert site_key(path).hex() == path.read_text()
        os.chown(path, owner + 8, -1)
        with pytest.raises(UserError, match="install -m 600"):
            site_key(path)


@pytest.mark.parametrize(
    "text",
    ["00" * 32, "ff" * 32, "55" * 32, "0123456789abcdef" * 4, bytes(range(32)).hex(), bytes(range(64, 0, -2)).hex(),
     "deadbeef" * 8],
)  # fmt: skip
def test_a_key_that_is_no_secret_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="is no secret"):
        site_key(key_of(tmp_path / "site.key", text))


def test_a_key_from_a_pipe_and_a_file_without_end(tmp_path: Path) -> None:
    key = secrets.token_hex(32)
    reading, writing = os.pipe()
    os.write(writing, key.encode())
    os.close(writing)
    assert site_key(Path(f"/dev/fd/{reading}")).hex() == key
    os.close(reading)
    with pytest.raises(UserError, match="not a site key"):
        site_key(Path("/dev/zero"))
