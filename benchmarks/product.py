"""The product as a user starts it: its command line, by the environment that runs the benchmark."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCANFOUNDRY = str(Path(sys.executable).parent / "scanfoundry")


def run(*words: object) -> None:
    """A command; it ends the benchmark where it fails."""
    subprocess.run([SCANFOUNDRY, *map(str, words)], check=True)


def run_written(what: str, folder: Path, config: dict[str, Any]) -> None:
    """`pretrain` or `finetune` by a configuration that is written beside its run folder."""
    path = folder.with_name(f"{folder.name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    run(what, path)
