"""Writes the release of a run: the model's weights and the page that describes them."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.models.description import RECONSTRUCTION, HeadInfo, ReleaseInfo, SourceRecord
from scanfoundry.backbones.models.release import save_release
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.engine.averaged_encoder import NAME as AVERAGED
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.training.initialize import Origin


def write_release(
    config: PretrainConfig, engine: Engine, loader: CropLoader, origin: Origin, step: int, saved: Path
) -> Path:
    """Write `model.safetensors`, `model.json` and `patients.txt` into the run folder; `saved` is the checkpoint.

    Averaged weights where the run has `ema`. Whom the weights that the run started from have seen counts as seen,
    and so do the patients of its teachers; their terms are handed on.
    """
    prefixes = released_prefixes(engine.objective.trained_parts(), config.ema is not None)
    parts = {part: engine.weights(saved, prefix) for part, prefix in prefixes.items()}
    data = config.data
    info = ReleaseInfo(
        backbone=config.backbone,
        head=HeadInfo(task=RECONSTRUCTION) if "head" in parts else None,
        objective=config.objective.label,
        step=step,
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
        patient_free=not loader.sites and config.init is None and not engine.objective.teachers(),
        versions={name: version(name) for name in ("scanfoundry", "torch", "deepspeed", "timm")},
    )
    bare = {part: without(prefixes[part], weights) for part, weights in parts.items()}
    return save_release(config.run_dir, bare, info, sorted({*loader.patients(), *origin.patients}))


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
