"""The command line as a person meets it: help, wrong words, wrong files."""

import io
from importlib.metadata import version

import numpy as np
import pytest
import warm

from scanfoundry.launch.cli.data_app import data_app
from scanfoundry.launch.cli.launch_app import launch_app
from scanfoundry.launch.cli.main import app, main
from scanfoundry.launch.cli.models_app import models_app

with io.BytesIO() as stream:
    np.save(stream, np.zeros((8, 8), np.uint8))
    SCAN = stream.getvalue()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "No such command"),
        (["data", "build"], "Missing"),
        (["data", "build", "no_such_folder", "--out", "OUT"], "no_such_folder"),
        (["data", "build", "EMPTY", "--out", "OUT"], "EMPTY"),
        (["data", "build", "EMPTY", "--out", "OUT", "--codec", "zip"], "codec"),
        (["data", "check", "EMPTY"], "EMPTY"),
        (["pretrain", "no_such_recipe"], "neither a file nor a recipe"),
        (["pretrain", "spark_stunet_volumes", "stpes=3"], "did you mean 'steps'?"),
        (["finetune", "hippocampus_segmentation", "shosts=3"], "did you mean 'shots'?"),
        (["predict", "--model", "EMPTY", "--input", "EMPTY", "--out", "OUT"], "EMPTY"),
        (["demo", "--data", "EMPTY", "--out", "OUT"], "imagesTr"),
        (["demo", "--out", "HOME"], "HOME is no folder of a demo: it holds scan.npy, thesis.tex"),
        (["data", "build", "HOME", "--out", "OUT", "--patient-regex", "(a"], "'(a' is no regular expression"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, words: list[str], said: str):
    for name in ("EMPTY", "HOME"):
        (tmp_path / name).mkdir()
    (tmp_path / "HOME" / "thesis.tex").write_text("x")
    (tmp_path / "HOME" / "scan.npy").write_bytes(SCAN)
    done = warm.run([warm.SCANFOUNDRY, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert said in done.stderr


def test_the_version_is_that_of_the_distribution():
    done = warm.run([warm.SCANFOUNDRY, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"scanfoundry {version('scanfoundry')}\n"


def test_every_command_explains_itself_by_either_option(capsys):
    def help_of(words: list[str], option: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*words, option])
        assert ended.value.code == 0
        return capsys.readouterr().out

    groups = {"data": data_app, "launch": launch_app, "models": models_app}
    commands = [[], *([name] for name in groups)]
    commands += [[each.name or each.callback.__name__] for each in app.registered_commands]
    commands += [[name, each.name or each.callback.__name__] for name, group in groups.items()
                 for each in group.registered_commands]  # fmt: skip
    assert len(commands) > 12
    for words in commands:
        text = help_of(words, "-h")
        assert "Usage:" in text
        assert text == help_of(words, "--help")
