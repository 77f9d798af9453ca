"""The fenced code blocks of Markdown pages, and how each kind of them is run.

A block without a language is a piece of shell, `python` and `yaml` are what they say, `text` is a drawing. A comment in
the line before a block changes that: `<!-- not run: REASON -->`, or `<!-- given: NAMES, of a TASK -->` for Python that
starts from objects which the page has introduced in words.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

COMMENT = r"(?:<!-- (?P<word>not run|given): (?P<note>[^\n]*) -->\n)?"
FENCE = re.compile(rf"^{COMMENT}```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)

# Recipes are for hours; these words, typed last, make minutes or seconds of them.
RESENC = "{name: resenc, features: [8, 12, 16], blocks: [1, 1, 1], strides: [[2, 2, 2], [2, 2, 2]]}"
SMALLER = {
    "pretrain": [f"backbone={RESENC}", "steps=2", "checkpoint_every=2", "picture_every=2", "data.crop_3d=[16, 16, 16]",
                 "data.batch_3d=2", "data.workers=0", "optimiser.warmup_steps=1", "engine.precision=fp32"],
    "finetune": ["schedule.steps=2", "schedule.warmup_steps=1", "shots=[2]", "seeds=[0]", "bootstrap=20",
                 "self_training.rounds=0", "plan.patch=[16, 16, 16]", "worst_cases=1"],
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A block of one page: where it begins, what it is, and what the comment before it says."""

    page: str
    line: int
    language: str
    text: str
    reason: str = ""  # why it is not run
    given: str = ""  # names that it starts from

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(content):
        line = content.count("\n", 0, match.start("language")) + 1
        notes = {match["word"]: match["note"]}
        reason, given = notes.get("not run", ""), notes.get("given", "")
        found.append(Block(page.name, line, match["language"], match["text"], reason, given))
    return found


def commands(text: str) -> list[str]:
    """The commands of a piece of shell: continued lines joined, empty lines left out."""
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def run_shell(text: str) -> None:
    """Run the commands of a block in the working directory; those of scanfoundry in this process, which is quicker."""
    for command in commands(text):
        arguments = shlex.split(command, comments=True)
        if arguments[0] == "scanfoundry":
            run_command(smaller(arguments[1:]))
            continue
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        environment.pop("PYTHONSAFEPATH", None)  # which our Makefile sets, for the folder of this project alone
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def smaller(arguments: list[str]) -> list[str]:
    """The words of a command with those behind them that make it short."""
    words = SMALLER.get(arguments[0], [])
    if any(word.startswith("budget=") for word in arguments):  # minutes are then given instead of steps
        words = [*[word for word in words if not word.startswith("schedule.steps")], "budget=1s"]
    return [*arguments, *words]


def run_command(arguments: list[str]) -> None:
    """`scanfoundry ARGUMENTS`, which must end with exit code 0."""
    from scanfoundry.launch.cli.main import main

    here, leave = os.getpid(), os._exit

    def leave_this(code: int) -> NoReturn:
        """Some commands leave without Python's own cleaning up; this process is needed for the next one."""
        if os.getpid() != here:
            leave(code)
        raise SystemExit(code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", leave_this)
        with pytest.raises(SystemExit) as left:
            main(arguments)
    assert left.value.code in (None, 0), f"exit code {left.value.code} of scanfoundry {shlex.join(arguments)}"


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a piece of Python, which leaves what it defines in `names`."""
    exec(compile(block.text, block.place, "exec"), names)


def check_yaml(text: str, base: dict[str, Any]) -> None:
    """Read a part of a pre-training's configuration as one, with `base` for what it leaves out."""
    import yaml

    from scanfoundry.configs.loading import check
    from scanfoundry.pretrain.config.run import PretrainConfig

    content = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in yaml.safe_load(text).items():
        content[key] = {**content.get(key, {}), **value} if key == "data" else value
    check(PretrainConfig, content, "the page")
