"""A run with its loader beside it, in this process: whole steps from shards, and the share that waits for data."""

import json
import shutil
from pathlib import Path
from statistics import median
from typing import Any

from gpus.cases import CASES
from gpus.commands import override
from gpus.data import images, volumes
from gpus.measuring import Meter
from gpus.parts import Row, Setting
from scanfoundry.configs.loading import load
from scanfoundry.pretrain import run
from scanfoundry.pretrain.config.run import PretrainConfig

STEPS, STEPS_OF_IMAGES, SMALL_STEPS = 60, 40, 4
WORKERS = 12
KEPT = ("samples_per_second", "data_wait", "mfu", "tflops", "memory_gib")  # of the lines that the run logs


def volumes_row(name: str, setting: Setting) -> Row:
    """The run of a case on volumes."""
    return _row(name, setting, volumes(setting.work, setting.small), STEPS)


def images_row(name: str, setting: Setting) -> Row:
    """The run of a case on images."""
    return _row(name, setting, images(setting.work, setting.small), STEPS_OF_IMAGES)


def _row(name: str, setting: Setting, data: Path, steps: int) -> Row:
    case, folder = CASES[name], setting.work / f"run_beside_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    steps = SMALL_STEPS if setting.small else steps
    words = [
        *case.words, *(case.small if setting.small else ()), f"run_dir={folder}", f"steps={steps}",
        override("data.sources", [{"name": data.name, "path": str(data)}]), f"checkpoint_every={steps}",
        f"data.workers={0 if setting.small else WORKERS}", "optimiser.warmup_steps=2", "data.holdout=0",
        "picture_every=0", "monitor_crops=0", f"device={setting.device}", override("threads", setting.threads),
    ]  # fmt: skip
    meter = Meter(setting.where)
    meter.clean()
    run(load(PretrainConfig, case.recipe, "pretrain", words))
    row = summary((folder / "metrics.jsonl").read_text())
    shutil.rmtree(folder)
    meter.clean()
    return row | {"workers": 0 if setting.small else WORKERS}


def summary(log: str) -> dict[str, Any]:
    """Medians over the last two thirds of the steps that a run logged."""
    lines = [json.loads(line) for line in log.splitlines()]
    kept = lines[len(lines) // 3 :]
    row: dict[str, Any] = {"steps": len(lines)}
    for key in KEPT:
        values = [line[key] for line in kept if line.get(key) is not None]
        if values:
            row[key] = round(median(values), 4)
    return row
