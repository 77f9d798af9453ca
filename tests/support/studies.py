"""What the tests of fine-tuning compare of a finished study."""

import json
from pathlib import Path
from typing import Any


def numbers(folder: Path) -> tuple[dict[str, Any], bytes]:
    """All that a study leaves, but for times: its results, and the weights that are kept."""
    found = json.loads((folder / "results.json").read_text())
    for trial in found["cells"]:
        trial.pop("spent")
        for history in trial["histories"]:
            history.pop("seconds")
    return found, (folder / "model.safetensors").read_bytes()
