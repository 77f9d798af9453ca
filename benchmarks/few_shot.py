"""Run a fine-tuning recipe and keep its table: every arm and number of shots with intervals, and the paired difference.

command: python benchmarks/few_shot.py hippocampus_segmentation --name NAME run_dir=... checkpoint=... data.images=...
Cells that are finished in the run folder are not trained again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from product import run
from record import record


def main() -> None:
    """Run, shorten results.json, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--name", required=True)
    arguments, words = parser.parse_known_args()
    run_dir = Path(next(word for word in words if word.startswith("run_dir=")).partition("=")[2])
    run("finetune", arguments.recipe, *words)
    results = json.loads((run_dir / "results.json").read_text())
    table = [
        {"arm": row["arm"], "shots": row["shots"], "train_cases": row["train_cases"], **shorten(row["metrics"])}
        for row in results["table"]
    ]
    record(
        arguments.name,
        {
            "recipe": arguments.recipe,
            "table": table,
            "minus_scratch": [
                {"arm": p["arm"], "shots": p["shots"], **shorten(p["metrics"])} for p in results["paired"]
            ],
            "trainings": [
                {
                    "arm": cell["arm"],
                    "shots": cell["shots"],
                    "seed": cell["seed"],
                    "steps": [history["steps"] for history in cell["histories"]],
                    "seconds": [round(history["seconds"]) for history in cell["histories"]],
                }
                for cell in results["cells"]
            ],
            "warnings": results["warnings"],
        },
    )


def shorten(metrics: dict[str, Any]) -> dict[str, str]:
    """'value [low, high], n patients' by metric."""
    return {
        name: "undefined"
        if m["value"] is None
        else f"{m['value']:.4f}, {m['patients']} patients"
        if m["low"] is None
        else f"{m['value']:.4f} [{m['low']:.4f}, {m['high']:.4f}], {m['patients']} patients"
        for name, m in metrics.items()
    }


if __name__ == "__main__":
    main()
