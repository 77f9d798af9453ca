"""The numbers of a run: `metrics.jsonl`."""

import json
from pathlib import Path
from typing import Any

from scanfoundry.configs.files import write_text


class MetricsFile:
    """One JSON object a line; a continued run drops what it had logged past the step it continues from."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the half line of a killed writer
                if record["step"] <= resumed_step:
                    kept.append(line)
        write_text(path, "".join(line + "\n" for line in kept))
        self._handle = open(path, "a", buffering=1)  # noqa: SIM115 - open for as long as the run

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; NaN becomes null so that every reader can parse the line."""
        clean = {k: None if isinstance(v, float) and v != v else v for k, v in record.items()}
        self._handle.write(json.dumps(clean) + "\n")

    def close(self) -> None:
        """Flush and close."""
        self._handle.close()
