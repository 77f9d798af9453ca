"""How many operations a step has, and which share of the device's peak it reaches with them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gpus.measuring import matmul_tflops
from gpus.parts import Row, Setting
from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.logging.device_peaks import peak_tflops
from scanfoundry.pretrain.memory.flops import flops

PAIR = 2  # crops that operations are counted on: of one there would be no batch statistics
TERA = 1e12
COUNTED_SMALL = "mae_resenc_l"  # where all is small, the others would take longer to count than to run
ESTIMATES = Path(__file__).resolve().parents[1] / "results" / "gpu_estimates.json"


def shares(config: PretrainConfig, name: str, known: Row, seconds: float, setting: Setting) -> Row:
    """TFLOP/s of a step, and its shares of what a matrix product reaches here and of the data sheet's peak (MFU).

    Args:
        config: of the run.
        name: of the case.
        known: `crop` and `batch` of the step.
        seconds: that it takes.
        setting: where it ran.
    """
    if setting.small and name != COUNTED_SMALL:
        return {}
    crop: Size3D = tuple(known["crop"])
    each = None if setting.small else counted_before(name, crop)
    total = known["batch"] * (each or flops(config, crop, PAIR) / PAIR)
    reached, precision = total / seconds / TERA, config.engine.precision
    row = {
        "tflop": round(total / TERA, 6),
        "tflops": round(reached, 3),
        "of_matmul": round(reached / matmul_tflops(setting.device, precision == "bf16"), 4),
    }
    if setting.device == "cuda":
        sheet = peak_tflops(torch.cuda.get_device_name(), precision, config.engine.tf32)
        row["mfu"] = round(reached / sheet, 4) if sheet else None
    return row


@cache
def _estimates() -> dict[str, Any]:
    return json.loads(ESTIMATES.read_text())["result"]["steps"] if ESTIMATES.exists() else {}


def counted_before(name: str, crop: Size3D) -> float | None:
    """Operations of one crop, as `--estimate` counted them, which takes seconds; None where it did not."""
    for row in _estimates().get(name, []):
        if row["crop"] == list(crop):
            return float(row["gflop_of_a_crop"]) * 1e9
    return None
