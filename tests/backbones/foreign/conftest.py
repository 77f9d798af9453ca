"""Files as their authors write them: nnU-Net v1's `.model` and nnssl's `.pth`, with records beside the weights."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture
def nnunet_v1(tmp_path: Path) -> Callable[..., Path]:
    """Writes what NetworkTrainer.save_checkpoint of nnU-Net v1 writes, after a real step of its optimiser.

    Every parameter is random first, so that a mixed-up or forgotten one is seen.
    """

    def write(network: nn.Module, x: torch.Tensor, prefix: str = "", name: str = "model.model") -> Path:
        for parameter in network.parameters():
            parameter.detach().add_(torch.randn_like(parameter), alpha=0.02)
        optimiser = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.99, nesterov=True)
        outputs = network(x)
        sum(y.square().mean() for y in (outputs if isinstance(outputs, list) else [outputs])).backward()
        optimiser.step()
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, 10)
        curves = tuple([np.float64(value) for value in values] for values in ((-0.1, -0.4), (-0.2, -0.3), ()))
        content: dict[str, Any] = {
            "epoch": 2,
            "state_dict": {prefix + key: value for key, value in network.state_dict().items()},
            "optimizer_state_dict": optimiser.state_dict(),
            "lr_scheduler_state_dict": schedule.state_dict(),
            "plot_stuff": (*curves, [np.mean([0.5, 0.7]), np.float32(0.25), np.int64(3)]),
            "best_stuff": (np.float64(-0.3), None, np.float64(0.6)),
            "amp_grad_scaler": {"scale": 65536.0, "growth_tracker": 3},
        }
        torch.save(content, tmp_path / "new-numpy")
        old_numpy_names(tmp_path / "new-numpy", tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def nnssl(tmp_path: Path) -> Callable[..., Path]:
    """Writes what nnssl releases: `network_weights`, the adaptation plan and the trainer's records, all plain values.

    plan: changes to the plan's first level.
    """

    def write(state: dict[str, torch.Tensor], name: str = "checkpoint_final.pth", **plan: Any) -> Path:
        configuration = {
            "spacing_style": "onemmiso",
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "spacing": [1, 1, 1],
            "patch_size": [192, 192, 64],
        }
        pretraining = {"dataset_name": "Dataset745_OpenNeuro_v2", "configurations": {"onemmiso": configuration}}
        adaptation = {
            "pretrain_plan": pretraining,
            "pretrain_num_input_channels": 1,
            "recommended_downstream_patchsize": [160, 160, 160],
        }
        content: dict[str, Any] = {"network_weights": state, "trainer_name": "BaseMAETrainer_BS8"}
        content["init_args"] = {"fold": "all", "pretrain_json": {"collection": [{"name": "scan", "n": 3}] * 5}}
        content["citations"] = [{"type": "Architecture", "apa_citations": ["somebody"]}]
        content["nnssl_adaptation_plan"] = adaptation | plan
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def old_numpy_names(source: Path, target: Path) -> None:
    """The same torch file with the name that numpy before 2 gave its scalars, as all released files have it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("/data.pkl"):
                assert b"cnumpy._core.multiarray\nscalar" in data
                data = data.replace(b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar")
            new.writestr(info.filename, data)
