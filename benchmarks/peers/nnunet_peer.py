"""nnU-Net v2, its own planner, trainer and predictor, for a given time: run by `benchmarks/nnunet.py`.

command: PYTHON_OF_NNUNET benchmarks/peers/nnunet_peer.py WORK MINUTES   (pip install nnunetv2==2.8.1)
WORK holds nnUNet_raw/Dataset004_Peer. Its polynomial decay runs over the time instead of over 1000 epochs, without
validation, on all cases of the data set; all else is its default, test-time mirroring included.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

work, minutes = Path(sys.argv[1]).absolute(), float(sys.argv[2])
for name in ("raw", "preprocessed", "results"):
    os.environ[f"nnUNet_{name}"] = str(work / f"nnUNet_{name}")
os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}

import torch  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

DATASET = "Dataset004_Peer"


class Rate:
    """nnU-Net's polynomial decay, over the share of the time."""

    def __init__(self, trainer: nnUNetTrainer) -> None:
        self.trainer, self.share = trainer, 0.0

    def step(self, epoch: int | None = None) -> None:
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = self.trainer.initial_lr * (1 - self.share) ** 0.9


def train(plans: dict, dataset: dict) -> tuple[nnUNetTrainer, int, list[float]]:
    """Iterations until the time is over."""
    trainer = nnUNetTrainer(plans | {"continue_training": False}, "3d_fullres", "all", dataset, torch.device("cpu"))
    trainer.on_train_start()
    trainer.lr_scheduler = rate = Rate(trainer)
    trainer.network.train()
    started, done, losses = time.monotonic(), 0, []
    while (spent := time.monotonic() - started) < minutes * 60:
        rate.share = spent / (minutes * 60)
        rate.step()
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        done += 1
        if done % 100 == 0:
            print(done, round(spent), sum(losses[-100:]) / 100, flush=True)
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    return trainer, done, losses


def main() -> None:
    torch.set_num_threads(2)
    entry = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
    words = ["x", "-d", "4", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
    code = (
        f"import sys; sys.argv = {words!r}; from {entry} import plan_and_preprocess_entry; plan_and_preprocess_entry()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    prepared = work / "nnUNet_preprocessed" / DATASET
    plans = json.loads((prepared / "nnUNetPlans.json").read_text())
    dataset = json.loads((work / "nnUNet_raw" / DATASET / "dataset.json").read_text())
    trainer, done, losses = train(plans, dataset)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, verbose=False)
    axes = trainer.inference_allowed_mirroring_axes
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, None, dataset, "nnUNetTrainer", axes
    )
    predictor.list_of_parameters = [trainer.network.state_dict()]
    inputs = sorted((work / "nnUNet_raw" / DATASET / "imagesTs").glob("*.nii.gz"))
    (work / "predicted").mkdir(exist_ok=True)
    outputs = [str(work / "predicted" / path.name.replace("_0000.nii.gz", "")) for path in inputs]
    predictor.predict_from_files_sequential([[str(path)] for path in inputs], outputs, overwrite=True)
    chosen = plans["configurations"]["3d_fullres"]
    about = {
        "iterations": done,
        "minutes": minutes,
        "patch": chosen["patch_size"],
        "batch": chosen["batch_size"],
        "last_loss": sum(losses[-50:]) / 50,
    }
    (work / "peer.json").write_text(json.dumps(about))
    for worker in multiprocessing.active_children():  # its augmentation outlives its loader
        worker.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
