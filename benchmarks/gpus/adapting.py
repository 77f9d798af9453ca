"""A fine-tuning of some steps, and a prediction with its model, by the command line on volumes that are drawn."""

import json
import shutil
import time
from pathlib import Path

import numpy as np

from gpus.commands import finish, override, start
from gpus.parts import Refused, Row, Setting
from gpus.resuming import KILLED
from scanfoundry.launch.demo.synthetic_data import make_cohort

STUDY, PREDICTED = "run_finetuned", "predicted"
PATIENTS, SHOTS = 10, 2
SCRATCH = {"name": "stunet", "size": "S", "strides": [[2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1], [1, 1, 1]]}


def finetune_row(setting: Setting) -> Row:
    """From the checkpoint that the run of `resume` left, else from scratch."""
    cohort, folder = setting.work / "cohort", setting.work / STUDY
    if not cohort.exists():
        make_cohort(cohort, PATIENTS)
    shutil.rmtree(folder, ignore_errors=True)
    found = setting.work / KILLED
    given = found if (found / "model.json").exists() else None
    begin = [f"checkpoint={found}"] if given else [override("backbone", SCRATCH)]
    steps, patch = (3, [8, 16, 16]) if setting.small else (200, [32, 64, 64])
    words = [
        "finetune", "demo", f"run_dir={folder}", *begin, f"data.images={cohort / 'ct' / 'imagesTr'}",
        f"data.labels={cohort / 'ct' / 'labelsTr'}", "data.modality=ct", "task.classes=[liver, kidney]",
        f"shots=[{SHOTS}]", f"schedule.steps={steps}", "schedule.warmup_steps=1", f"plan.patch={patch}",
        "split.test_fraction=0.2", "bootstrap=50", "compare_scratch=false" if given else "compare_scratch=true",
        f"device={setting.device}",
    ]  # fmt: skip
    log, began = setting.work / f"{STUDY}.log", time.perf_counter()
    finish(start(words, log, setting.device), log)
    results = json.loads((folder / "results.json").read_text())
    metrics = {name: value["value"] for name, value in results["table"][0]["metrics"].items()}
    return {
        "seconds": round(time.perf_counter() - began, 1), "steps": steps,
        "start": "checkpoint" if given else "scratch", "metrics": metrics,
    }  # fmt: skip


def predict_row(setting: Setting) -> Row:
    """Two scans by the fine-tuned model; each label map must have its scan's shape."""
    folder, out = setting.work / STUDY, setting.work / PREDICTED
    if not (folder / "model.json").exists():
        raise Refused("the fine-tuning left no model")
    shutil.rmtree(out, ignore_errors=True)
    scans = sorted((setting.work / "cohort" / "ct" / "imagesTr").glob("*.nii.gz"))[:2]
    words: list[object] = ["predict", "--model", folder, "--out", out, "--device", setting.device]
    for scan in scans:
        words += ["--input", scan]
    log, began = setting.work / f"{PREDICTED}.log", time.perf_counter()
    finish(start(words, log, setting.device), log)
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1), "scans": len(scans), "labels": [labels_of(scan, out) for scan in scans]}


def labels_of(scan: Path, out: Path) -> list[int]:
    """The labels that were predicted for a scan.

    Raises:
        Refused: there is no label map of the scan's shape.
    """
    import nibabel

    shape = nibabel.load(scan).shape
    for path in out.rglob("*.nii.gz"):
        predicted = nibabel.load(path)
        if scan.name.partition(".")[0] in path.as_posix() and predicted.shape == shape:
            return [int(label) for label in np.unique(np.asanyarray(predicted.dataobj))]
    raise Refused(f"no prediction of the shape of {scan.name}: {sorted(path.name for path in out.rglob('*'))}")
