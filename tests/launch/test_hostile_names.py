"""No name leaves its quotes: the job script of every hostile one is run by bash, and does what an ordinary one does."""

import json
import subprocess
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check
from scanfoundry.launch.cluster import submit
from scanfoundry.launch.cluster.launching import launch_command
from scanfoundry.launch.cluster.options import ClusterConfig, check_plain_folder

TRAP = "trap-was-here"
CODE = f"touch {TRAP}"
TEXTS = [
    f"'; {CODE}; '", f'"; {CODE}; "', f"$({CODE})", f"`{CODE}`", f"x; {CODE}", f"a & {CODE}", f"| {CODE}", f"> {TRAP}",
    f"\\'; {CODE}; \\'", f"-x {CODE}", "a b", "~", "*", "#", "!", "é", "$HOME", "\\", "'", "''", '"',
]  # fmt: skip
LINES = [f"a\n{CODE}\n", f"a\r{CODE}", f"\n{CODE}", "a\x00b", "a\x1b[2J", "a\u2028b", f"a\x0b{CODE}"]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an `srun` and a python that note what they were given, in place of the real ones."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "python"):
        (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >> "$NOTES"\nenv -0 > "$NOTES.env"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setattr(submit, "PYTHON", str(folder / "python"))
    return folder


def run_script(text: str, folder: Path, stub: Path) -> tuple[list[str], dict[str, str]]:
    """Run by bash in an empty folder; the words that the stubs got, and the environment of the last of them."""
    (folder / "job.sh").write_text(text)
    notes = folder / "notes"
    environment = {"PATH": f"{stub}:/usr/bin:/bin", "NOTES": str(notes), "HOME": str(folder)}
    subprocess.run(["bash", "job.sh"], cwd=folder, env=environment, timeout=30, capture_output=True, check=False)
    assert not (folder / TRAP).exists()
    found = dict(part.partition("=")[::2] for part in (folder / "notes.env").read_text().split("\0") if part)
    return notes.read_text().split("\0"), found


@pytest.mark.parametrize("text", TEXTS)
def test_values_and_folders_reach_the_job_as_they_are(tmp_path: Path, stub: Path, text: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    # Of a file name, what can be one.
    logs = tmp_path / text.replace("/", "_").replace("%", "_").replace(":", "_") / "jobs"
    config = check(
        ClusterConfig,
        {"env": {"SITE_TEXT": text}, "partition": text, "sbatch": {"comment": text}, "account": text},
        "t",
    )
    script = submit.script(config, logs, None, 2)
    words, found = run_script(script, work, stub)
    assert found["SITE_TEXT"] == text
    assert str(logs) in words
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    lines = script.splitlines()
    assert lines[3 : 3 + len(directives)] == directives


@pytest.mark.parametrize("text", LINES)
def test_what_would_not_stay_in_its_line_is_refused(text: str) -> None:
    for content in (
        {"partition": text}, {"account": text}, {"qos": text}, {"constraint": text}, {"sbatch": {"comment": text}},
        {"sbatch": {text: "x"}}, {"env": {text: "x"}},
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            check(ClusterConfig, content, "options")
        assert str(error.value).isprintable()
    with pytest.raises(UserError, match="run_dir=") as error:
        check_plain_folder(Path(f"/runs/{text}"), "local", False)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "name", ["", "1A", "A B", "A=B", "A;B", f"A; {CODE}; B", f"A$({CODE})", "A-B", "é", "A\n", "-A", "A[0]", "A+", " A"]
)
def test_a_name_that_no_variable_has_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no name of a variable"):
        check(ClusterConfig, {"env": {name: "x"}}, "options")


@pytest.mark.parametrize("key", ["a b", "a=b", "a;b", "é", "a#", "a'", ""])
def test_an_option_that_sbatch_cannot_have_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="no option of sbatch"):
        check(ClusterConfig, {"sbatch": {key: "x"}}, "options")


def test_values_of_several_lines_stay_one_value(tmp_path: Path, stub: Path) -> None:
    text = f"one\n{CODE}\n'two'"
    config = check(ClusterConfig, {"env": {"SITE_TEXT": text}}, "t")
    _, found = run_script(submit.script(config, tmp_path / "logs", None, 1), tmp_path, stub)
    assert found["SITE_TEXT"] == text


@pytest.mark.parametrize(
    ("name", "where", "snapshot", "refused"),
    [
        ("a\nb", "slurm", False, True), ("a\tb", "local", False, True), ("a%jb", "local", True, True),
        ("50%", "slurm", True, True), ("50%", "local", True, False), ("10:00", "slurm", True, True),
        ("10:00", "slurm", False, False), ("an ordinary name (2)", "slurm", True, False),
    ],
)  # fmt: skip
def test_a_run_folder_that_a_job_would_misread_is_refused(name: str, where: str, snapshot: bool, refused: bool) -> None:
    if refused:
        with pytest.raises(UserError, match="choose another") as error:
            check_plain_folder(Path("/runs") / name, where, snapshot)
        assert str(error.value).isprintable()
    else:
        check_plain_folder(Path("/runs") / name, where, snapshot)


def test_nothing_is_written_for_such_a_folder(lab) -> None:
    folder = lab.folder / "a\nb"
    with pytest.raises(UserError, match="choose another"):
        launch_command(
            str(lab.config("plain")), [f"run_dir={json.dumps(str(folder))}"], "local", {}, None, None, False, True
        )
    assert not folder.exists()
