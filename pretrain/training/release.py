"""Writes the release of a run: the encoder's weights and the page that describes them."""

from importlib.metadata import version
from pathlib import Path

from scanfoundry.backbones.models.release import ReleaseInfo, SourceRecord, save_release
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.engine.averaged_encoder import NAME as AVERAGED
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.training.initialize import Origin

ENCODER = "encoder."  # every objective holds its backbone under this name


def write_release(
    config: PretrainConfig, engine: Engine, loader: CropLoader, origin: Origin, step: int, saved: Path
) -> Path:
    """Write `model.safetensors`, `model.json` and `patients.txt` into the run folder; `saved` is the checkpoint.

    Averaged weights where the run has `ema`. Whom the weights that the run started from have seen counts as seen,
    and so do the patients of its teachers; their terms are handed on.
    """
    chosen = released_prefix(config.ema is not None)
    encoder = {key.removeprefix(chosen): value for key, value in engine.weights(saved, chosen).items()}
    data = config.data
    info = ReleaseInfo(
        backbone=config.backbone,
        objective=config.objective.label,
        step=step,
        averaged=None if config.ema is None else config.ema.momentum,
        intensity=data.intensity.model_dump(mode="json"),
        crop_2d=data.crop_2d,
        crop_3d=data.crop_3d,
        sources=tuple(
            SourceRecord(name=name, manifest_sha256=digest, site=loader.sites[name])
            for name, digest in sorted(loader.manifest_hash.items())
        ),
        licence=_joined(config.licence, origin.licence),
        citation=_joined(config.citation, origin.citation),
        versions={name: version(name) for name in ("scanfoundry", "torch", "deepspeed", "timm")},
    )
    return save_release(config.run_dir, encoder, info, sorted({*loader.patients(), *origin.patients}))


def released_prefix(averaged: bool) -> str:
    """What the names of the released weights begin with in the objective's state."""
    return f"{AVERAGED}.{ENCODER}" if averaged else ENCODER


def _joined(own: str | None, inherited: str) -> str:
    return "; ".join(part for part in (own, inherited and f"of the weights it started from: {inherited}") if part)
