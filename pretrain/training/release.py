"""Writes the release of a run: the model's weights and the page that describes them."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.models.description import RECONSTRUCTION, HeadInfo, ReleaseInfo, SourceRecord
from scanfoundry.backbones.models.patients import PatientList
from scanfoundry.backbones.models.release import save_release
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.pretrain.checkpoint.state_files import StateFiles
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.engine.averaged_encoder import NAME as AVERAGED
from scanfoundry.pretrain.objectives.protocol import Objective
from scanfoundry.pretrain.training.initialize import Origin


class ReleaseWriter:
    """Writes `model.safetensors`, `model.json` and `patients.txt` into the run folder, from a sealed checkpoint.

    Averaged weights where the run has `ema`. Whom the weights that the run started from have seen counts as seen,
    and so do the patients of its teachers; their terms are handed on. What does not change in a run is made once.

    Args:
        config: of the run.
        objective: what is trained; nothing of it is read after this call.
        loader: the stream of crops.
        origin: of the first weights and of the teachers.
    """

    def __init__(self, config: PretrainConfig, objective: Objective, loader: CropLoader, origin: Origin) -> None:
        self._folder = config.run_dir
        self._prefixes = released_prefixes(objective.trained_parts(), config.ema is not None)
        self._info = _described(config, objective, loader, origin)
        self._patients = PatientList.of({*loader.patients(), *origin.patients})

    def write(self, saved: Path, step: int) -> Path:
        """Write the release of a checkpoint.

        It may run beside the training, since it reads nothing but the files of the checkpoint.

        Args:
            saved: the folder of the checkpoint.
            step: that it is of.

        Returns:
            The path of the weights.
        """
        with StateFiles(saved) as files:
            parts = {part: _as_released(prefix, files.weights(prefix)) for part, prefix in self._prefixes.items()}
        return save_release(self._folder, parts, self._info.model_copy(update={"step": step}), self._patients)


def _described(config: PretrainConfig, objective: Objective, loader: CropLoader, origin: Origin) -> ReleaseInfo:
    data = config.data
    return ReleaseInfo(
        backbone=config.backbone,
        head=HeadInfo(task=RECONSTRUCTION) if "head" in objective.trained_parts() else None,
        objective=config.objective.label,
        averaged=None if config.ema is None else config.ema.momentum,
        intensity=data.intensity.model_dump(mode="json"),
        crop_2d=data.crop_2d,
        crop_3d=data.crop_3d,
        sources=tuple(
            SourceRecord(
                name=name,
                manifest_sha256=digest,
                site=loader.sites.get(name, ""),
                synthetic=name not in loader.sites,
            )
            for name, digest in sorted(loader.manifest_hash.items())
        ),
        licence=_joined(config.licence, origin.licence),
        citation=_joined(config.citation, origin.citation),
        patient_free=not loader.sites and config.init is None and not objective.teachers(),
        versions={name: version(name) for name in ("scanfoundry", "torch", "deepspeed", "timm")},
    )


def _as_released(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in without(prefix, weights).items()}


def released_prefixes(trained: Mapping[Part, str], averaged: bool) -> dict[Part, str]:
    """What the names of each part's released weights begin with in the objective's state.

    Args:
        trained: the submodule of each part, `Objective.trained_parts`.
        averaged: whether the run averages its weights.
    """
    return {part: f"{AVERAGED}.{part}." if averaged else f"{name}." for part, name in trained.items()}


def without(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their names without a prefix that all have."""
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def _joined(own: str | None, inherited: str) -> str:
    return "; ".join(part for part in (own, inherited and f"of the weights it started from: {inherited}") if part)
