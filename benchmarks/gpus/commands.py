"""The command line of the product in processes of their own, also where it was not installed by pip."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpus.parts import Refused

COMMAND = [sys.executable, "-c", "from scanfoundry.launch.cli.main import main; main()"]
LINES = 3  # of an error that is told


def start(words: list[object], log: Path, device: str) -> "subprocess.Popen[bytes]":
    """Start `scanfoundry WORDS`, whose output goes to a file."""
    environment = os.environ | {"PYTHONSAFEPATH": "1", "WANDB_MODE": "disabled"}
    environment["SCANFOUNDRY_KEY_FILE"] = str(log.parent / "site.key")
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        return subprocess.Popen([*COMMAND, *map(str, words)], stdout=output, stderr=output, env=environment)


def finish(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for the end of a command.

    Raises:
        Refused: it failed; the text has its last lines.
    """
    if process.wait() != 0:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise Refused(f"a command ended with code {process.returncode}: {' | '.join(said[-LINES:])}")


def override(name: str, value: Any) -> str:
    """`name=value` as the command line reads it: JSON is YAML."""
    import json

    return f"{name}={json.dumps(value)}"
