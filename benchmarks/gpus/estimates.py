"""What the steps may need of a GPU, counted without one: memory as `launch --dry-run` says, operations as the log."""

import tempfile
import time
from pathlib import Path
from typing import Any

from gpus.cases import CASES, OBJECTIVES, STEPS, VARIANTS
from gpus.operations import PAIR
from scanfoundry.pretrain.logging.device_peaks import peak_tflops
from scanfoundry.pretrain.memory.estimate import Calculator
from scanfoundry.pretrain.memory.flops import flops

DEVICE = "NVIDIA H200"
# Share of the peak that a step is taken to reach, as in `recipes.py`: no measurement.
ASSUMED = {"convolutional": 0.25, "transformer": 0.35}


def estimates(names: list[str]) -> dict[str, Any]:
    """The rows of cases by name, one for each kind of crop, and what is assumed."""
    peak, rows, began = peak_tflops(DEVICE, "bf16", False), dict[str, Any](), time.process_time()
    assert peak is not None
    with tempfile.TemporaryDirectory() as folder:
        for name in names or CASES:
            rows[name] = estimate(name, Path(folder), peak)
            print(name, rows[name], flush=True)
    seconds = round(time.process_time() - began)
    return {"device": DEVICE, "peak_tflops": peak, "share_assumed": ASSUMED, "cpu_seconds": seconds, "steps": rows}


def estimate(name: str, work: Path, peak: float) -> list[dict[str, Any]]:
    """Of one case: parameters, memory at its peak, operations of a crop and a step, and a step at the assumed share."""
    config = CASES[name].config(False, work)
    calculator, rows = Calculator(config, 1, "cuda"), list[dict[str, Any]]()
    share = ASSUMED[config.backbone.family]
    for crop, batch in calculator.crops():
        each = flops(config, crop, PAIR) / PAIR
        rows.append({
            "crop": list(crop), "batch": batch, "parameters": calculator.model.trainable,
            "memory_gb": round(calculator.usage().peak / 1e9, 1), "gflop_of_a_crop": round(each / 1e9, 3),
            "tflop_of_a_step": round(each * batch / 1e12, 2), "ms_assumed": round(each * batch / peak / share / 1e9, 1),
        })  # fmt: skip
    return rows


def markdown(rows: dict[str, Any]) -> str:
    """The table of a page; memory is of the larger kind of crop."""
    lines = ["| part | step | million parameters | TFLOP | GB | ms, if the share is as assumed |", "|---" * 6 + "|"]
    what = {name: text for name, text, _, _ in (*STEPS, *OBJECTIVES, *VARIANTS)}
    for name, kinds in rows.items():
        values = [name, what[name], f"{kinds[0]['parameters'] / 1e6:.0f}"]
        values.append("; ".join(f"{row['tflop_of_a_step']:g}" for row in kinds))
        values.append(f"{kinds[0]['memory_gb']:g}")
        values.append("; ".join(f"{row['ms_assumed']:g}" for row in kinds))
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines) + "\n"
